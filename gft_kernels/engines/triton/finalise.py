"""From the tiles' partials to all that a row needs, between the forward and the gradient GEMMs.

With m the largest offset of the row and o_t, s_t, e_t the partials of tile t,

    rest = sum_t s_t e^(o_t - m)    E_y = e^(z_y - m)    total = rest + E_y
    log p = -log1p(rest / E_y)
    entropy = log total - (sum_t e^(o_t - m) (e_t + (o_t - m) s_t) + E_y (z_y - m)) / total
    loss, coefficient = objective(log p, A, old, ref)      GFT: -A C(p) log p, -A C(p), C(p) = p if p < tau else 1
    factor = -coefficient * w / total      target = -rest * slope of the soft cap at z_y

so that dz = factor * exps, where the target's entry of exps holds `target`. That is minus the sum
of the others, never 1 - p by subtraction. This entry is most of the row's gradient, so it is
rounded first and the factor takes up what the rounding lost: the entry reaches the GEMMs exactly.
In fp16 a power of two of the factor moves to the exponentials (`scale`), as far as there is room.

Cost: a few operations a row and tile, no GEMM. Bytes: 12 a row and tile read, 9 numbers a row
written.

Source: arXiv:2604.14258 Eq. 18 and 21 for the coefficient of GFT.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...head import Head
from .arguments import SCORES_ONLY
from .arithmetic import log1p, number, power_of_two_ratio
from .configs import ELEMENTS, STEP_SIZES, launch_options, per_tile, transforms
from .formulas import OUTSIDE as OUTSIDE_KIND
from .formulas import objective_terms
from .tile import uncap

BLOCK_N, BLOCK_T = 32, 16  # rows, and tiles that are read at once


@triton.jit
def combine(partials_ptr, target_logit, row, K, TILES, PER_TILE: tl.constexpr, BLOCK_T: tl.constexpr):
    """(m, rest, moment) of each row: the tiles' partials under their common offset."""
    plane = tl.cast(TILES, tl.int64) * K  # TILES may be the constant 1
    live = (row < K)[None, :]
    largest = target_logit
    if PER_TILE:  # the target must not take part while others are in sight: its logit is no multiple of ln 2
        largest = target_logit - 60.0
    for start in range(0, TILES, BLOCK_T):
        tile = start + tl.arange(0, BLOCK_T)
        at = partials_ptr + tile.to(tl.int64)[:, None] * K + row[None, :]
        mask = (tile < TILES)[:, None] & live
        offset = tl.load(at, mask=mask, other=float("-inf"))
        total = tl.load(at + plane, mask=mask, other=0.0)
        largest = tl.maximum(largest, tl.max(tl.where(total != 0, offset, float("-inf")), 0))
    rest = tl.zeros_like(target_logit)
    moment = tl.zeros_like(target_logit)
    for start in range(0, TILES, BLOCK_T):
        tile = start + tl.arange(0, BLOCK_T)
        at = partials_ptr + tile.to(tl.int64)[:, None] * K + row[None, :]
        mask = (tile < TILES)[:, None] & live
        above = tl.minimum(tl.load(at, mask=mask, other=0.0) - largest[None, :], 0.0)
        total = tl.load(at + plane, mask=mask, other=0.0)
        partial = tl.load(at + 2 * plane, mask=mask, other=0.0)
        power = power_of_two_ratio(above) if PER_TILE else tl.exp(above)
        rest += tl.sum(total * power, 0)
        moment += tl.sum(power * (partial + tl.maximum(above, -1e30) * total), 0)
    return largest, rest, moment


@triton.jit
def row_scores(target_logit, offset, rest, moment):
    """(log p, entropy, total) of rows, whose sums over the others are under `offset`."""
    own = tl.exp(target_logit - offset)
    total = rest + own
    logprobs = tl.where(own > 0.5, -log1p(rest / own), target_logit - offset - tl.log(total))
    entropy = tl.log(total) - (moment + own * tl.maximum(target_logit - offset, -1e30)) / total
    return logprobs, entropy, total


@triton.jit
def row_terms(
    at,
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
    KIND: tl.constexpr,
    CORRECTED: tl.constexpr,
):
    """(loss, coefficient) of rows whose per-token constants are at `at`.

    A pointer is None where the caller gave nothing, that of ref where there is no penalty.
    """
    advantages = tl.zeros_like(logprobs)
    if advantages_ptr is not None:
        advantages = tl.load(advantages_ptr + at, mask=live, other=0.0)
    old = logprobs
    if old_ptr is not None:
        old = tl.load(old_ptr + at, mask=live, other=0.0)
    ref = logprobs
    if ref_ptr is not None:
        ref = tl.load(ref_ptr + at, mask=live, other=0.0)
    bound = tl.zeros_like(logprobs) + number(tau, logprobs)
    if tau_ptr is not None:
        bound = tl.load(tau_ptr + at, mask=live, other=0.0)
    return objective_terms(
        logprobs,
        advantages,
        old,
        ref,
        bound,
        clip_low,
        clip_high,
        dual_clip,
        beta,
        kl_clamp,
        KIND,
        ref_ptr is not None,
        CORRECTED,
    )


@triton.jit(do_not_specialize=STEP_SIZES)
def finalise_kernel(
    partials_ptr,
    target_logit_ptr,
    rows_ptr,
    weights_ptr,
    advantages_ptr,
    old_ptr,
    ref_ptr,
    tau_ptr,
    unit_ptr,
    K,
    TILES,
    tau: tl.float64,
    clip_low: tl.float64,
    clip_high: tl.float64,
    dual_clip: tl.float64,
    beta: tl.float64,
    kl_clamp: tl.float64,
    outer: tl.float64,
    KIND: tl.constexpr,
    CORRECTED: tl.constexpr,
    CAPPED: tl.constexpr,
    PER_TILE: tl.constexpr,
    EXPS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """rows [9, K] in the order of `RowTerms`."""
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    live = row < K
    target_logit = tl.load(target_logit_ptr + row, mask=live, other=0.0)
    offset, rest, moment = combine(partials_ptr, target_logit, row, K, TILES, PER_TILE, BLOCK_T)
    logprobs, entropy, total = row_scores(target_logit, offset, rest, moment)
    at = rows_ptr + row
    tl.store(at, logprobs, mask=live)
    tl.store(at + K, entropy, mask=live)
    tl.store(at + 2 * K, offset, mask=live)
    tl.store(at + 3 * K, tl.log(total), mask=live)
    if KIND != OUTSIDE_KIND:
        loss, coefficient = row_terms(
            row,
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
        factor = -coefficient * tl.load(weights_ptr + row, mask=live, other=0.0) / total
        scale = tl.zeros_like(target_logit) + 1.0
        if PER_TILE:
            factor /= tl.load(unit_ptr)
            power = tl.log2(tl.where(factor == 0, 1.0, tl.abs(factor)))
            # |target| stays under 2^15, because a coefficient may be far over 1.
            room = 15.0 - tl.log2(tl.maximum(rest, 1.0))
            shared = tl.where(power < 0, 0.5 * power, power)  # a small one is shared by both sides
            scale = tl.exp2(tl.floor(tl.minimum(shared, room)))
        target = uncap(-rest, target_logit, outer, CAPPED) * scale
        rounded = target.to(EXPS).to(target.dtype)
        ratio = target / tl.where(rounded == 0, 1.0, rounded)
        tl.store(at + 4 * K, loss, mask=live)
        tl.store(at + 5 * K, coefficient, mask=live)
        tl.store(at + 6 * K, factor / scale * tl.where(tl.abs(ratio - 1) < 0.01, ratio, 1.0), mask=live)
        tl.store(at + 7 * K, scale, mask=live)
        tl.store(at + 8 * K, rounded, mask=live)


class RowTerms(NamedTuple):
    """What `finalise` found, [K] each, in the accumulators' dtype.

    Only the first four are written where the objective is not known.
    """

    logprobs: Tensor
    entropy: Tensor
    offset: Tensor
    log_total: Tensor
    loss: Tensor
    coefficient: Tensor
    factor: Tensor  # dz = factor * (scale * exps)
    scale: Tensor  # power of two
    target: Tensor  # the target's entry of scale * exps, exact in their dtype


def finalise(
    partials: Tensor,  # [3, tiles, K]
    target_logit: Tensor,  # [K]
    exps: torch.dtype,
    head: Head,
    arguments: dict[str, Any] | None = None,
) -> RowTerms:
    """Rows of one chunk. `arguments` are those of `loss_arguments`, or None for scores alone."""
    tiles, count = partials.shape[1:]
    rows = torch.empty(len(RowTerms._fields), count, dtype=partials.dtype, device=partials.device)
    if count:
        finalise_kernel[(triton.cdiv(count, BLOCK_N),)](
            partials_ptr=partials,
            target_logit_ptr=target_logit,
            rows_ptr=rows,
            K=count,
            TILES=tiles,
            EXPS=ELEMENTS[exps],
            PER_TILE=per_tile(exps),
            outer=transforms(head)["outer"],
            CAPPED=transforms(head)["CAPPED"],
            BLOCK_N=BLOCK_N,
            BLOCK_T=BLOCK_T,
            **(arguments or SCORES_ONLY),
            **launch_options(4, 2),
        )
    return RowTerms(*rows.unbind())
