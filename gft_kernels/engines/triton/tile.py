"""The one GEMM of every kernel: a [BLOCK_N, BLOCK_V] tile of raw logits, and the transforms.

The tile stays in registers. Padding columns are computed on wrapped addresses, so that the loop
needs no mask for them. The caller masks them after the transforms.

Cost: 2 * BLOCK_N * BLOCK_V * D a tile. Bytes: BLOCK_N * D of hidden and BLOCK_V * D of weight. A
low-rank addition adds a step for every 16 of its rank.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from ...head import Operands
from .arithmetic import number, tanh


@triton.jit
def tile_position(K, V, BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, GROUP: tl.constexpr):
    """(row block, vocabulary tile) of this program: GROUP row blocks share their tiles in L2."""
    pid = tl.program_id(0)
    row_blocks = tl.cdiv(K, BLOCK_N)
    programs = GROUP * tl.cdiv(V, BLOCK_V)
    first = pid // programs * GROUP
    height = tl.minimum(row_blocks - first, GROUP)
    return first + pid % programs % height, pid % programs // height


# Steps along the rank of a low-rank addition. Steps of BLOCK_D would spill on sm_90 and sm_100.
BLOCK_R = tl.constexpr(16)


def pointers(operands: Operands) -> dict[str, Any]:
    """What a kernel is told of the operands: rows of hidden states contiguous, columns adjacent."""
    hidden, weight, bias, low_hidden, low_weight = operands
    return {
        "hidden_ptr": hidden,
        "weight_ptr": weight,
        "bias_ptr": bias,
        "low_hidden_ptr": low_hidden,
        "low_weight_ptr": low_weight,
        "V": len(weight),
        "D": hidden.shape[1],
        "R": None if low_hidden is None else low_hidden.shape[1],
        "stride_wv": weight.stride(0),
        "stride_lv": None if low_weight is None else low_weight.stride(0),
    }


@triton.jit
def add_product(acc, hidden_ptr, weight_ptr, row, col, K, V, D, stride_wv, EVEN_D: tl.constexpr, BLOCK_D: tl.constexpr):
    """acc + hidden [K, D] @ weight [V, D].T at rows `row` and columns `col`.

    fp32 operands are never rounded to TF32.
    """
    depth = tl.arange(0, BLOCK_D)
    hidden_ptrs = hidden_ptr + (row % K).to(tl.int64)[:, None] * D + depth[None, :]
    weight_ptrs = weight_ptr + (col % V).to(tl.int64)[None, :] * stride_wv + depth[:, None]
    for start in range(0, D, BLOCK_D):
        if EVEN_D:
            hidden = tl.load(hidden_ptrs)
            weight = tl.load(weight_ptrs)
        else:
            hidden = tl.load(hidden_ptrs, mask=depth[None, :] < D - start, other=0.0)
            weight = tl.load(weight_ptrs, mask=depth[:, None] < D - start, other=0.0)
        acc = tl.dot(hidden, weight, acc, input_precision="ieee", out_dtype=acc.dtype)
        hidden_ptrs += BLOCK_D
        weight_ptrs += BLOCK_D
    return acc


@triton.jit
def raw_logits(
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
    HAS_BIAS: tl.constexpr,
    HAS_LOW: tl.constexpr,
    EVEN_D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ACC: tl.constexpr,
):
    """The raw logits of `Operands` at rows `row` and columns `col`, accumulated in ACC."""
    acc = tl.zeros((row.shape[0], col.shape[0]), dtype=ACC)
    acc = add_product(acc, hidden_ptr, weight_ptr, row, col, K, V, D, stride_wv, EVEN_D, BLOCK_D)
    if HAS_LOW:
        acc = add_product(acc, low_hidden_ptr, low_weight_ptr, row, col, K, V, R, stride_lv, False, BLOCK_R)
    if HAS_BIAS:
        acc += tl.load(bias_ptr + col % V).to(ACC)[None, :]
    return acc


@triton.jit
def transform(raw, inner, outer, CAPPED: tl.constexpr):
    """z of raw logits, with the numbers of `configs.transforms`."""
    z = raw * number(inner, raw)
    if CAPPED:
        z = tanh(z) * number(outer, raw)
    return z


@triton.jit
def uncap(grad, z, outer, CAPPED: tl.constexpr):
    """grad on z times the slope of the soft cap, 1 - tanh^2.

    The factor scale / temperature is left to the GEMMs.
    """
    if CAPPED:
        t = z * number(1.0 / outer, z)
        return grad * (1.0 - t * t)
    return grad
