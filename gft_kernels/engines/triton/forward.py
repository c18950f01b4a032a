"""Forward over a chunk of rows: logit tiles in registers, their partial sums, and on request the
scaled exponentials.

With o a row's offset in a tile and y its target,

    reference_k = z_ky                                                     head_reference_kernel
    sum = sum_{j != y} e^(z_j - o)    moment = sum_{j != y} e^(z_j - o) (z_j - o)    exps_j = e^(z_j - o) * cap slope

The offset is the target's own logit: probabilities relative to the target's keep every digit of 1 -
p, and one offset a row means that nothing is rescaled later. A tile that rises more than
OFFSET_LIMIT above it takes its own maximum instead. fp16 has no room for that: there every tile
takes the power of two above its maximum (PER_TILE), so that bringing tiles together rounds nothing.

Cost: 2KDV. Bytes: the weight once for every GROUP of row blocks, exps written once; partials are 12
bytes a row and tile.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...head import Head, Operands
from .configs import OFFSET_LIMIT, Config, accumulator, launch_options, per_tile, transforms
from .tile import power_of_two_above, raw_logits, tile_position, transform, uncap


@triton.heuristics({"HAS_BIAS": lambda args: args["bias_ptr"] is not None})
@triton.jit
def head_reference_kernel(
    hidden_ptr,
    weight_ptr,
    bias_ptr,
    targets_ptr,
    reference_ptr,
    V,
    D,
    stride_wv,
    SCALE: tl.constexpr,
    SOFTCAP: tl.constexpr,
    TEMPERATURE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ACC: tl.constexpr,
):
    """The target's logit, one program a row."""
    row = tl.program_id(0).to(tl.int64)
    target = tl.minimum(tl.maximum(tl.load(targets_ptr + row), 0), V - 1)  # an unchecked target must not read elsewhere
    products = tl.zeros((BLOCK_D,), dtype=ACC)
    for start in range(0, D, BLOCK_D):
        depth = start + tl.arange(0, BLOCK_D)
        hidden = tl.load(hidden_ptr + row * D + depth, mask=depth < D, other=0.0).to(ACC)
        weight = tl.load(weight_ptr + target * stride_wv + depth, mask=depth < D, other=0.0).to(ACC)
        products += hidden * weight
    raw = tl.sum(products, 0)
    if HAS_BIAS:
        raw += tl.load(bias_ptr + target).to(ACC)
    tl.store(reference_ptr + row, transform(raw, SCALE, SOFTCAP, TEMPERATURE))


@triton.heuristics(
    {
        "HAS_BIAS": lambda args: args["bias_ptr"] is not None,
        "STORE": lambda args: args["exps_ptr"] is not None,
        "EVEN_D": lambda args: args["D"] % args["BLOCK_D"] == 0,
    }
)
@triton.jit
def head_fwd_kernel(
    hidden_ptr,
    weight_ptr,
    bias_ptr,
    targets_ptr,
    reference_ptr,
    exps_ptr,
    partials_ptr,
    K,
    V,
    D,
    stride_wv,
    stride_ek,
    SCALE: tl.constexpr,
    SOFTCAP: tl.constexpr,
    TEMPERATURE: tl.constexpr,
    LIMIT: tl.constexpr,
    PER_TILE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    STORE: tl.constexpr,
    EVEN_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GROUP: tl.constexpr,
    ACC: tl.constexpr,
):
    """partials [3, tiles, K]: offset, sum and moment of each row in each tile, without the target's
    column.
    """
    row_block, tile = tile_position(K, V, BLOCK_N, BLOCK_V, GROUP)
    row = row_block * BLOCK_N + tl.arange(0, BLOCK_N)
    col = tile * BLOCK_V + tl.arange(0, BLOCK_V)
    raw = raw_logits(hidden_ptr, weight_ptr, bias_ptr, row, col, K, V, D, stride_wv, HAS_BIAS, EVEN_D, BLOCK_D, ACC)
    target = tl.load(targets_ptr + row, mask=row < K, other=-1).to(tl.int32)
    reference = tl.load(reference_ptr + row, mask=row < K, other=0.0)
    others = (col < V)[None, :] & (col[None, :] != target[:, None])
    z = tl.where(others, transform(raw, SCALE, SOFTCAP, TEMPERATURE), float("-inf"))
    peak = tl.max(z, 1)
    if PER_TILE:
        offset = power_of_two_above(peak)
    else:
        offset = tl.where(peak > reference + LIMIT, peak, reference)
    offset = tl.where(offset == float("-inf"), 0.0, offset)
    shifted = z - offset[:, None]
    exps = tl.exp(shifted)
    partials = partials_ptr + tile.to(tl.int64) * K + row
    plane = tl.cast(tl.cdiv(V, BLOCK_V), tl.int64) * K
    tl.store(partials, offset, mask=row < K)
    tl.store(partials + plane, tl.sum(exps, 1), mask=row < K)
    tl.store(partials + 2 * plane, tl.sum(exps * tl.maximum(shifted, -1e30), 1), mask=row < K)
    if STORE:
        exps = uncap(exps, tl.maximum(z, -SOFTCAP / TEMPERATURE), SOFTCAP, TEMPERATURE)  # exps is 0 where z is -inf
        stored = exps_ptr + row.to(tl.int64)[:, None] * stride_ek + col[None, :]
        tl.store(stored, exps.to(exps_ptr.dtype.element_ty), mask=(row < K)[:, None] & (col < stride_ek)[None, :])


def head_reference(
    operands: Operands,  # hidden [K, D]
    targets: Tensor,  # [K]
    head: Head,
) -> Tensor:  # [K]
    """Logit of each row's target after every transform, in the accumulators' dtype."""
    hidden, weight, bias = operands
    dtype, acc = accumulator(hidden.dtype)
    reference = torch.empty(len(hidden), dtype=dtype, device=hidden.device)
    if len(hidden):
        head_reference_kernel[(len(hidden),)](
            hidden_ptr=hidden,
            weight_ptr=weight,
            bias_ptr=bias,
            targets_ptr=targets,
            reference_ptr=reference,
            V=len(weight),
            D=hidden.shape[1],
            stride_wv=weight.stride(0),
            BLOCK_D=512,
            ACC=acc,
            **transforms(head),
            **launch_options(4, 1),
        )
    return reference


def head_forward(
    operands: Operands,  # hidden [K, D]
    targets: Tensor,  # [K]
    reference: Tensor,  # [K]
    exps: Tensor | None,  # [K, V], written up to its row stride: the padding lets an odd V store 16 bytes at a time
    head: Head,
    config: Config,
) -> Tensor:  # [3, tiles, K]
    """Partials of every tile, and the scaled exponentials where `exps` is given (the targets'
    entries are left 0).
    """
    hidden, weight, bias = operands
    (rows, size), vocabulary = hidden.shape, weight.shape[0]
    tiles = triton.cdiv(vocabulary, config.block_v)
    _, acc = accumulator(hidden.dtype)
    partials = torch.empty(3, tiles, rows, dtype=reference.dtype, device=hidden.device)
    head_fwd_kernel[(triton.cdiv(rows, config.block_n) * tiles,)](
        hidden_ptr=hidden,
        weight_ptr=weight,
        bias_ptr=bias,
        targets_ptr=targets,
        reference_ptr=reference,
        exps_ptr=exps,
        partials_ptr=partials,
        K=rows,
        V=vocabulary,
        D=size,
        stride_wv=weight.stride(0),
        stride_ek=0 if exps is None else exps.stride(0),
        LIMIT=OFFSET_LIMIT,
        PER_TILE=per_tile(hidden.dtype),
        ACC=acc,
        **transforms(head),
        **config.blocks(),
        **config.options(),
    )
    return partials
