"""The losses on logits that exist already; the gradient is written once, in place if asked.

    pass 1    m, sum and moment of the row without its target,
              then log p, entropy, loss and coefficient as in finalise.py
    pass 2    dz_j = factor * e^(z_j - m), dz_y = -factor * rest

Pass 2 reads the row again, now from L2. Rows outside the plan are not read, and their gradient is
0. fp16 gradients are held in multiples of `unit`.

Cost: a few operations an element, no GEMM. Bytes: in 16 bits, 2 read and 2 written an element.

Source: arXiv:2604.14258 Eq. 21.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...losses.objectives import losses_and_coefficients
from ..contract import LossPlan, LossRows
from .arguments import SCORES_ONLY, given_arguments, loss_arguments
from .arithmetic import number
from .configs import STEP_SIZES, accumulator, launch_options, transforms
from .finalise import row_scores, row_terms
from .formulas import OUTSIDE as OUTSIDE_KIND


@triton.jit
def online_sums(logits, target, live, V, inner, BLOCK_V: tl.constexpr, ACC: tl.constexpr):
    """(m, sum, moment) of each row without its target, rescaled when a block raises the maximum."""
    largest = tl.full(target.shape, float("-inf"), ACC)
    rest = tl.zeros(target.shape, ACC)
    moment = tl.zeros(target.shape, ACC)
    for start in range(0, V, BLOCK_V):
        col = start + tl.arange(0, BLOCK_V)
        others = live[:, None] & (col < V)[None, :] & (col[None, :] != target[:, None])
        z = tl.load(logits[:, None] + col[None, :], mask=others, other=float("-inf")).to(ACC) * inner
        peak = tl.maximum(largest, tl.max(z, 1))
        offset = tl.where(peak == float("-inf"), 0.0, peak)
        fall = tl.maximum(largest - offset, -1e30)
        shifted = z - offset[:, None]
        exps = tl.exp(shifted)
        moment = tl.exp(fall) * (moment + fall * rest) + tl.sum(exps * tl.maximum(shifted, -1e30), 1)
        rest = tl.exp(fall) * rest + tl.sum(exps, 1)
        largest = peak
    return largest, rest, moment


@triton.jit(do_not_specialize=STEP_SIZES)
def logits_loss_kernel(
    logits_ptr,
    grad_ptr,
    slots_ptr,
    targets_ptr,
    rows_ptr,
    weights_ptr,
    advantages_ptr,
    old_ptr,
    ref_ptr,
    tau_ptr,
    unit_ptr,
    N,
    K,
    V,
    stride_ln,
    stride_gn,
    tau: tl.float64,
    clip_low: tl.float64,
    clip_high: tl.float64,
    dual_clip: tl.float64,
    beta: tl.float64,
    kl_clamp: tl.float64,
    inner: tl.float64,
    KIND: tl.constexpr,
    CORRECTED: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """rows [4, K] hold log p, entropy, loss and coefficient; slots [N] a row's place in K, or -1.

    Without grad no gradient is written.
    """
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    slot = tl.load(slots_ptr + row, mask=row < N, other=-1)
    live = slot >= 0
    row64 = row.to(tl.int64)
    factor = tl.zeros((BLOCK_N,), ACC)
    offset = tl.zeros((BLOCK_N,), ACC)
    own = tl.zeros((BLOCK_N,), ACC)
    inner = number(inner, factor)
    target = tl.load(targets_ptr + row, mask=live, other=-1).to(tl.int32)
    logits = logits_ptr + row64 * stride_ln
    some = tl.max(slot, 0) >= 0
    if some:
        target_logit = tl.load(logits + target, mask=live & (target >= 0) & (target < V), other=0.0).to(ACC) * inner
        largest, rest, moment = online_sums(logits, target, live, V, inner, BLOCK_V, ACC)
        offset = tl.maximum(largest, target_logit)
        offset = tl.where(offset == float("-inf"), 0.0, offset)
        fall = tl.where(rest == 0, 0.0, largest - offset)
        moment = tl.exp(fall) * (moment + fall * rest)
        rest = tl.exp(fall) * rest
        logprobs, entropy, total = row_scores(target_logit, offset, rest, moment)
        tl.store(rows_ptr + slot, logprobs, mask=live)
        tl.store(rows_ptr + K + slot, entropy, mask=live)
        if KIND != OUTSIDE_KIND:
            loss, coefficient = row_terms(
                slot,
                live,
                logprobs,
                advantages_ptr,
                old_ptr,
                ref_ptr,
                tau_ptr,
                tau,
                clip_low,
                clip_high,
                dual_clip,
                beta,
                kl_clamp,
                KIND,
                CORRECTED,
            )
            tl.store(rows_ptr + 2 * K + slot, loss, mask=live)
            tl.store(rows_ptr + 3 * K + slot, coefficient, mask=live)
            factor = -coefficient * tl.load(weights_ptr + slot, mask=live, other=0.0) / total * inner
            if unit_ptr is not None:
                factor /= tl.load(unit_ptr)
            own = -factor * rest
    if grad_ptr is not None:
        grad = grad_ptr + row64 * stride_gn
        for start in range(0, V, BLOCK_V):
            col = start + tl.arange(0, BLOCK_V)
            inside = (col < V)[None, :]
            z = tl.load(logits[:, None] + col[None, :], mask=inside & live[:, None], other=0.0).to(ACC) * inner
            dz = tl.where(col[None, :] == target[:, None], own[:, None], factor[:, None] * tl.exp(z - offset[:, None]))
            dz = tl.where(live[:, None], dz, 0.0)
            tl.store(grad[:, None] + col[None, :], dz.to(grad_ptr.dtype.element_ty), mask=inside & (row < N)[:, None])


@triton.jit(do_not_specialize=STEP_SIZES)
def scale_kernel(values_ptr, scale_ptr, V, stride, BLOCK_V: tl.constexpr):
    """values <- values * scale, row by row. A scale of 1 reads nothing."""
    scale = tl.load(scale_ptr)
    if scale != 1.0:
        row = tl.program_id(0).to(tl.int64)
        for start in range(0, V, BLOCK_V):
            col = start + tl.arange(0, BLOCK_V)
            values = tl.load(values_ptr + row * stride + col, mask=col < V, other=0.0)
            tl.store(values_ptr + row * stride + col, (values.to(scale.dtype) * scale).to(values.dtype), mask=col < V)


def logits_loss(
    logits: Tensor,  # [N, V]
    plan: LossPlan,
    grad: Tensor | None,  # [N, V], written; may be logits itself
    unit: Tensor | None,
    block: tuple[int, int],
) -> LossRows:
    """Loss and rows of the plan. The gradient of the loss, over `unit`, goes into `grad`."""
    (rows, vocabulary), count = logits.shape, len(plan.weights)
    dtype, acc = accumulator(logits.dtype)
    slots = torch.arange(rows, dtype=torch.int32, device=logits.device)
    if plan.rows is not None:
        slots = torch.full_like(slots, -1).index_copy(0, plan.rows, slots[:count])
    found = torch.empty(4, count, dtype=dtype, device=logits.device)

    def launch(arguments: dict[str, Any], grad: Tensor | None) -> None:
        logits_loss_kernel[(triton.cdiv(rows, block[0]),)](
            logits_ptr=logits,
            grad_ptr=grad,
            slots_ptr=slots,
            targets_ptr=plan.targets,
            rows_ptr=found,
            N=rows,
            K=count,
            V=vocabulary,
            stride_ln=logits.stride(0),
            stride_gn=0 if grad is None else grad.stride(0),
            inner=transforms(plan.head)["inner"],
            ACC=acc,
            BLOCK_N=block[0],
            BLOCK_V=block[1],
            **arguments,
            **launch_options(8, 1),
        )

    if rows == 0:
        return LossRows(found.new_zeros(()), *(found[i].clone() for i in (0, 1, 3)))
    arguments = loss_arguments(plan, slice(0, count), unit)
    if arguments is not None:
        launch(arguments, grad)
    else:
        launch(SCORES_ONLY, None)
        losses, coefficients = losses_and_coefficients(plan.objective, found[0], plan.per_token)
        launch(given_arguments(plan, slice(0, count), unit, coefficients), grad)
        found[2] = losses
    return LossRows((found[2] * plan.weights).sum(), *(found[i].clone() for i in (0, 1, 3)))


def scale_(values: Tensor, scale: Tensor) -> None:
    """values [N, V] times a scalar on the device, in place. Free where the scalar is 1."""
    if len(values):
        scale_kernel[(len(values),)](
            values_ptr=values,
            scale_ptr=scale,
            V=values.shape[1],
            stride=values.stride(0),
            BLOCK_V=4096,
            **launch_options(4, 1),
        )
