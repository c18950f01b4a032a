"""From scaled exponentials to logit gradients, in place.

    exps_j <- exps_j * e^(o_t - m) * scale        exps_y <- target

o_t is the tile's offset, m the row's. Where all rows of a tile keep their values, the tile is not
read, and only its targets' entries are written. In bf16 and fp32 that is every tile, unless a
target lies 40 nats under its row's maximum. In fp16 every tile is rewritten, times powers of two.

Cost: one product an element of a rewritten tile, no GEMM. Bytes: 4 a row and tile read, and a
rewritten tile read and written once.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .arithmetic import power_of_two_ratio
from .configs import STEP_SIZES, Config, launch_options, per_tile
from .finalise import RowTerms

BLOCK_N = 64


# `RowTerms` are rows of one tensor [9, K]: where they start would be aligned or not by K.
@triton.jit(do_not_specialize=STEP_SIZES, do_not_specialize_on_alignment=("offset_ptr", "target_ptr", "scale_ptr"))
def rescale_kernel(
    exps_ptr,
    partials_ptr,
    offset_ptr,
    target_ptr,
    scale_ptr,
    targets_ptr,
    K,
    V,
    stride_ek,
    PER_TILE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """One of the forward's tiles of BLOCK_V columns, and BLOCK_N rows, a program."""
    tiles = tl.cdiv(V, BLOCK_V)
    tile = tl.program_id(0) % tiles
    row = tl.program_id(0) // tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    live = row < K
    offset = tl.load(partials_ptr + tile.to(tl.int64) * K + row, mask=live, other=0.0)
    above = offset - tl.load(offset_ptr + row, mask=live, other=0.0)
    above = tl.minimum(above, 0.0)  # a tile without mass may lie above: its entries are 0
    own = tl.load(target_ptr + row, mask=live, other=0.0)
    if PER_TILE:
        multiplier = power_of_two_ratio(above) * tl.load(scale_ptr + row, mask=live, other=0.0)
    else:
        multiplier = tl.exp(above)
    target = tl.load(targets_ptr + row, mask=live, other=-1).to(tl.int32)
    exps = exps_ptr + row.to(tl.int64) * stride_ek
    changed = tl.max(tl.where(live & (multiplier != 1.0), 1, 0), 0)
    if changed > 0:
        col = tile * BLOCK_V + tl.arange(0, BLOCK_V)
        mask = live[:, None] & (col < stride_ek)[None, :]
        values = tl.load(exps[:, None] + col[None, :], mask=mask, other=0.0)
        values = tl.where(col[None, :] == target[:, None], own[:, None], values.to(own.dtype) * multiplier[:, None])
        tl.store(exps[:, None] + col[None, :], values.to(exps_ptr.dtype.element_ty), mask=mask)
    else:
        here = live & (target >= tile * BLOCK_V) & (target < tl.minimum((tile + 1) * BLOCK_V, V))
        tl.store(exps + target, own.to(exps_ptr.dtype.element_ty), mask=here)


def rescale(
    exps: Tensor,  # [K, V]
    partials: Tensor,  # [3, tiles, K]
    rows: RowTerms,
    targets: Tensor,  # [K]
    config: Config,
) -> None:
    """Turn a chunk's exponentials into its logit gradients over `rows.factor`."""
    count, vocabulary = exps.shape
    rescale_kernel[(triton.cdiv(count, BLOCK_N) * partials.shape[1],)](
        exps_ptr=exps,
        partials_ptr=partials,
        offset_ptr=rows.offset,
        target_ptr=rows.target,
        scale_ptr=rows.scale,
        targets_ptr=targets,
        K=count,
        V=vocabulary,
        stride_ek=exps.stride(0),
        PER_TILE=per_tile(exps.dtype),
        BLOCK_N=BLOCK_N,
        BLOCK_V=config.block_v,
        **launch_options(8, 1),
    )
