"""dz for any upstream gradient of log p and entropy, straight from a recomputed tile.

    log p_j = z_j - m - log total (both kept by the forward)        p_j = e^(log p_j)
    dz_j = -p_j (g + h (log p_j + H))      dz_y = g (1 - p) - h p (log p + H), 1 - p = -expm1(log p)

g and h are the upstream gradients of log p and of the entropy H. dz is rounded once, and no second
pass over it is needed.

Cost: 2KDV for K rows whose upstream gradient is not 0, then the two gradient GEMMs. Bytes: the
weight once for every GROUP of row blocks, dz written once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...head import Head, Operands
from ..contract import Scores, Upstream
from .configs import STEP_SIZES, Config, accumulator, transforms
from .tile import pointers, raw_logits, tile_position, transform, uncap


@triton.heuristics(
    {
        "HAS_BIAS": lambda args: args["bias_ptr"] is not None,
        "HAS_LOW": lambda args: args["low_hidden_ptr"] is not None,
        "HAS_ENTROPY": lambda args: args["grad_entropy_ptr"] is not None,
        "EVEN_D": lambda args: args["D"] % args["BLOCK_D"] == 0,
    }
)
@triton.jit(do_not_specialize=STEP_SIZES)
def head_bwd_kernel(
    hidden_ptr,
    weight_ptr,
    bias_ptr,
    low_hidden_ptr,
    low_weight_ptr,
    targets_ptr,
    normaliser_ptr,
    entropy_ptr,
    grad_logprobs_ptr,
    grad_entropy_ptr,
    own_ptr,
    dz_ptr,
    K,
    V,
    D,
    R,
    stride_wv,
    stride_lv,
    stride_zk,
    inner: tl.float64,
    outer: tl.float64,
    CAPPED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_LOW: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
    EVEN_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GROUP: tl.constexpr,
    ACC: tl.constexpr,
):
    """dz [K, V] of one tile."""
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
    live = row < K
    z = transform(raw, inner, outer, CAPPED)
    offset = tl.load(normaliser_ptr + row, mask=live, other=0.0)
    log_total = tl.load(normaliser_ptr + K + row, mask=live, other=0.0)
    log_p = z - offset[:, None] - log_total[:, None]
    slope = tl.load(grad_logprobs_ptr + row, mask=live, other=0.0)[:, None]
    if HAS_ENTROPY:
        entropy = tl.load(entropy_ptr + row, mask=live, other=0.0)
        slope += tl.load(grad_entropy_ptr + row, mask=live, other=0.0)[:, None] * (
            tl.maximum(log_p, -1e30) + entropy[:, None]
        )
    own = tl.load(own_ptr + row, mask=live, other=0.0)
    target = tl.load(targets_ptr + row, mask=live, other=-1).to(tl.int32)
    dz = tl.where(col[None, :] == target[:, None], own[:, None], -tl.exp(log_p) * slope)
    dz = uncap(dz, z, outer, CAPPED)
    stored = dz_ptr + row.to(tl.int64)[:, None] * stride_zk + col[None, :]
    tl.store(stored, dz.to(dz_ptr.dtype.element_ty), mask=live[:, None] & (col < stride_zk)[None, :])


def head_backward(
    operands: Operands,  # hidden [K, D]
    targets: Tensor,  # [K]
    scores: Scores,
    upstream: Upstream,
    dz: Tensor,  # [K, V], written up to its row stride
    head: Head,
    config: Config,
) -> None:
    """Write dz, soft cap included. The factor scale / temperature is left to the GEMMs."""
    grad_logprobs, grad_entropy = upstream
    own = grad_logprobs * -torch.expm1(scores.logprobs)
    if grad_entropy is not None:
        own = own - grad_entropy * scores.logprobs.exp() * (scores.logprobs.clamp(min=-1e30) + scores.entropy)
    rows, vocabulary = len(operands.hidden), len(operands.weight)
    _, acc = accumulator(operands.hidden.dtype)
    head_bwd_kernel[(triton.cdiv(rows, config.block_n) * triton.cdiv(vocabulary, config.block_v),)](
        **pointers(operands),
        targets_ptr=targets,
        normaliser_ptr=scores.normaliser,
        entropy_ptr=scores.entropy,
        grad_logprobs_ptr=grad_logprobs,
        grad_entropy_ptr=grad_entropy,
        own_ptr=own,
        dz_ptr=dz,
        K=rows,
        stride_zk=dz.stride(0),
        ACC=acc,
        **transforms(head),
        **config.blocks(),
        **config.options(),
    )
