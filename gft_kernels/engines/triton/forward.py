"""Forward over a chunk of rows: logit tiles in registers, their sums, on request exponentials.

With o a row's offset in a tile and y its target,

    target_logit_k = z_ky                                                  head_target_logit_kernel
    sum = sum_{j != y} e^(z_j - o)    moment = sum_{j != y} e^(z_j - o) (z_j - o)    exps_j = e^(z_j - o) * cap slope

The offset is the target's own logit. Probabilities relative to the target's keep every digit of
1 - p, and one offset a row means that nothing is rescaled later. A tile that rises more than
OFFSET_LIMIT above it takes its own maximum instead. fp16 has no room for that: there every tile
takes the power of two above its maximum (PER_TILE), so that bringing tiles together rounds nothing.

Cost: 2KDV. Bytes: the weight once for every GROUP of row blocks, exps written once, 12 bytes a row
and tile of partials.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...head import Head, Operands
from .arithmetic import number, power_of_two_above
from .configs import OFFSET_LIMIT, STEP_SIZES, Config, accumulator, launch_options, per_tile, transforms
from .tile import pointers, raw_logits, tile_position, transform, uncap


@triton.heuristics(
    {
        "HAS_BIAS": lambda args: args["bias_ptr"] is not None,
        "HAS_LOW": lambda args: args["low_hidden_ptr"] is not None,
    }
)
@triton.jit(do_not_specialize=STEP_SIZES)
def head_target_logit_kernel(
    hidden_ptr,
    weight_ptr,
    bias_ptr,
    low_hidden_ptr,
    low_weight_ptr,
    targets_ptr,
    target_logit_ptr,
    V,
    D,
    R,
    stride_wv,
    stride_lv,
    inner: tl.float64,
    outer: tl.float64,
    CAPPED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_LOW: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ACC: tl.constexpr,
):
    """The logit of a row's target, one program a row."""
    row = tl.program_id(0).to(tl.int64)
    # An unchecked target must not read outside the weight.
    target = tl.minimum(tl.maximum(tl.load(targets_ptr + row), 0), V - 1)
    products = tl.zeros((BLOCK_D,), dtype=ACC)
    for start in range(0, D, BLOCK_D):
        depth = start + tl.arange(0, BLOCK_D)
        hidden = tl.load(hidden_ptr + row * D + depth, mask=depth < D, other=0.0).to(ACC)
        weight = tl.load(weight_ptr + target * stride_wv + depth, mask=depth < D, other=0.0).to(ACC)
        products += hidden * weight
    if HAS_LOW:
        for start in range(0, R, BLOCK_D):
            depth = start + tl.arange(0, BLOCK_D)
            hidden = tl.load(low_hidden_ptr + row * R + depth, mask=depth < R, other=0.0).to(ACC)
            weight = tl.load(low_weight_ptr + target * stride_lv + depth, mask=depth < R, other=0.0).to(ACC)
            products += hidden * weight
    raw = tl.sum(products, 0)
    if HAS_BIAS:
        raw += tl.load(bias_ptr + target).to(ACC)
    tl.store(target_logit_ptr + row, transform(raw, inner, outer, CAPPED))


@triton.heuristics(
    {
        "HAS_BIAS": lambda args: args["bias_ptr"] is not None,
        "HAS_LOW": lambda args: args["low_hidden_ptr"] is not None,
        "STORE": lambda args: args["exps_ptr"] is not None,
        "EVEN_D": lambda args: args["D"] % args["BLOCK_D"] == 0,
    }
)
@triton.jit(do_not_specialize=STEP_SIZES)
def head_fwd_kernel(
    hidden_ptr,
    weight_ptr,
    bias_ptr,
    low_hidden_ptr,
    low_weight_ptr,
    targets_ptr,
    target_logit_ptr,
    exps_ptr,
    partials_ptr,
    K,
    V,
    D,
    R,
    stride_wv,
    stride_lv,
    stride_ek,
    inner: tl.float64,
    outer: tl.float64,
    CAPPED: tl.constexpr,
    LIMIT: tl.constexpr,
    PER_TILE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_LOW: tl.constexpr,
    STORE: tl.constexpr,
    EVEN_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GROUP: tl.constexpr,
    ACC: tl.constexpr,
):
    """partials [3, tiles, K]: offset, sum and moment of each row and tile, without the target."""
    inner = tl.full((), inner, ACC)  # rounded here: held in fp64 to the end they cost AMD a spill
    outer = tl.full((), outer, ACC)
    row_block, tile = tile_position(K, V, BLOCK_N, BLOCK_V, GROUP)
    row = row_block * BLOCK_N + tl.arange(0, BLOCK_N)
    col = tile * BLOCK_V + tl.arange(0, BLOCK_V)
    raw = raw_logits(
        hidden_ptr,
        weight_ptr,
        bias_ptr,
        low_hidden_ptr,
        low_weight_ptr,
        row,
        col,
        K,
        V,
        D,
        R,
        stride_wv,
        stride_lv,
        HAS_BIAS,
        HAS_LOW,
        EVEN_D,
        BLOCK_D,
        ACC,
    )
    target = tl.load(targets_ptr + row, mask=row < K, other=-1).to(tl.int32)
    target_logit = tl.load(target_logit_ptr + row, mask=row < K, other=0.0)
    others = (col < V)[None, :] & (col[None, :] != target[:, None])
    z = tl.where(others, transform(raw, inner, outer, CAPPED), float("-inf"))
    peak = tl.max(z, 1)
    if PER_TILE:
        offset = power_of_two_above(peak)
    else:
        offset = tl.where(peak > target_logit + LIMIT, peak, target_logit)
    offset = tl.where(offset == float("-inf"), 0.0, offset)
    shifted = z - offset[:, None]
    exps = tl.exp(shifted)
    partials = partials_ptr + tile.to(tl.int64) * K + row
    plane = tl.cast(tl.cdiv(V, BLOCK_V), tl.int64) * K
    tl.store(partials, offset, mask=row < K)
    tl.store(partials + plane, tl.sum(exps, 1), mask=row < K)
    tl.store(partials + 2 * plane, tl.sum(exps * tl.maximum(shifted, -1e30), 1), mask=row < K)
    if STORE:
        # Where z is -inf, exps is 0, and the bound keeps 0 * inf away.
        exps = uncap(exps, tl.maximum(z, -number(outer, z)), outer, CAPPED)
        stored = exps_ptr + row.to(tl.int64)[:, None] * stride_ek + col[None, :]
        tl.store(stored, exps.to(exps_ptr.dtype.element_ty), mask=(row < K)[:, None] & (col < stride_ek)[None, :])


def head_target_logit(
    operands: Operands,  # hidden [K, D]
    targets: Tensor,  # [K]
    head: Head,
) -> Tensor:  # [K]
    """Logit of each row's target after every transform, in the accumulators' dtype."""
    hidden = operands.hidden
    dtype, acc = accumulator(hidden.dtype)
    target_logit = torch.empty(len(hidden), dtype=dtype, device=hidden.device)
    if len(hidden):
        head_target_logit_kernel[(len(hidden),)](
            **pointers(operands),
            targets_ptr=targets,
            target_logit_ptr=target_logit,
            BLOCK_D=512,
            ACC=acc,
            **transforms(head),
            **launch_options(4, 1),
        )
    return target_logit


def head_forward(
    operands: Operands,  # hidden [K, D]
    targets: Tensor,  # [K]
    target_logit: Tensor,  # [K]
    exps: Tensor | None,  # [K, V], written up to its row stride, so that an odd V stores 16 bytes at a time
    head: Head,
    config: Config,
) -> Tensor:  # [3, tiles, K]
    """Partials of every tile, and the scaled exponentials where `exps` is given.

    The targets' entries of `exps` are left 0.
    """
    rows, tiles = len(operands.hidden), triton.cdiv(len(operands.weight), config.block_v)
    _, acc = accumulator(operands.hidden.dtype)
    partials = torch.empty(3, tiles, rows, dtype=target_logit.dtype, device=target_logit.device)
    head_fwd_kernel[(triton.cdiv(rows, config.block_n) * tiles,)](
        **pointers(operands),
        targets_ptr=targets,
        target_logit_ptr=target_logit,
        exps_ptr=exps,
        partials_ptr=partials,
        K=rows,
        stride_ek=0 if exps is None else exps.stride(0),
        LIMIT=OFFSET_LIMIT,
        PER_TILE=per_tile(operands.hidden.dtype),
        ACC=acc,
        **transforms(head),
        **config.blocks(),
        **config.options(),
    )
    return partials
