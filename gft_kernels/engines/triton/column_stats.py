"""One look at a chunk's logit gradients for the column-sparse path.

    largest_j = max_i scale_i |grad_ij|    total_j = sum_i scale_i |grad_ij|    row_sums_i = sum_j grad_ij

A program takes BLOCK_V columns and every row, so that only the row sums cross programs. Each
program writes its part of them.

Cost: a few operations an element, no GEMM. Bytes: the chunk read once.

Source: docs/column-sparse.md.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..columns import Looked
from .configs import STEP_SIZES, accumulator, launch_options

BLOCK_N, BLOCK_V = 32, 128


@triton.jit(do_not_specialize=STEP_SIZES)
def columns_kernel(
    grad_ptr,
    scale_ptr,
    largest_ptr,
    total_ptr,
    row_sums_ptr,
    K,
    V,
    stride_gk,
    ACC: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """The sums of BLOCK_V columns. row_sums [tiles, K] holds each tile's part."""
    tile = tl.program_id(0)
    col = tile * BLOCK_V + tl.arange(0, BLOCK_V)
    largest = tl.zeros((BLOCK_V,), dtype=ACC)
    total = tl.zeros((BLOCK_V,), dtype=ACC)
    for start in range(0, K, BLOCK_N):
        row = start + tl.arange(0, BLOCK_N)
        at = grad_ptr + row.to(tl.int64)[:, None] * stride_gk + col[None, :]
        grad = tl.load(at, mask=(row < K)[:, None] & (col < V)[None, :], other=0.0).to(ACC)
        tl.store(row_sums_ptr + tile.to(tl.int64) * K + row, tl.sum(grad, 1), mask=row < K)
        scaled = tl.abs(grad) * tl.load(scale_ptr + row, mask=row < K, other=0.0)[:, None]
        largest = tl.maximum(largest, tl.max(scaled, 0))
        total += tl.sum(scaled, 0)
    tl.store(largest_ptr + col, largest, mask=col < V)
    tl.store(total_ptr + col, total, mask=col < V)


def look(
    grad: Tensor,  # [K, V]
    scale: Tensor,  # [K]
) -> Looked:
    """`Looked` of a chunk whose rows may have either sign."""
    (count, vocabulary), (dtype, acc) = grad.shape, accumulator(grad.dtype)
    tiles = triton.cdiv(vocabulary, BLOCK_V)
    largest, total = torch.empty(2, vocabulary, dtype=dtype, device=grad.device).unbind()
    row_sums = torch.empty(tiles, count, dtype=dtype, device=grad.device)
    columns_kernel[(tiles,)](
        grad_ptr=grad,
        scale_ptr=scale.to(dtype).contiguous(),
        largest_ptr=largest,
        total_ptr=total,
        row_sums_ptr=row_sums,
        K=count,
        V=vocabulary,
        stride_gk=grad.stride(0),
        ACC=acc,
        BLOCK_N=BLOCK_N,
        BLOCK_V=BLOCK_V,
        **launch_options(4, 1),
    )
    return Looked(largest, total, row_sums.sum(0))
