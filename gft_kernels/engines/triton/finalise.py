"""From the tiles' partials to everything a row needs: one small kernel between the forward GEMM and
the gradient GEMMs.

With m the largest offset of the row and o_t, s_t, e_t the partials of tile t,

    rest = sum_t s_t e^(o_t - m)    E_y = e^(z_y - m)    total = rest + E_y
    log p = -log1p(rest / E_y)
    entropy = log total - (sum_t e^(o_t - m) (e_t + (o_t - m) s_t) + E_y (z_y - m)) / total
    loss, coefficient = objective(log p, A, old, ref)      GFT: -A C(p) log p, -A C(p), C(p) = p if p < tau else 1
    factor = -coefficient * w / total      target = -rest * slope of the soft cap at z_y

so that dz = factor * exps, the target's entry holding `target`: minus the sum of the others, never
1 - p by subtraction. That entry is most of the row's gradient, so it is rounded first and the
factor takes up what the rounding lost: it enters the GEMMs exactly. In fp16 a power of two of the
factor moves to the exponentials (`scale`), as far as there is room.

Cost: 12 bytes a row and tile read, 9 numbers a row written; B rewards a row where advantages are
normalised here.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...head import Head
from .arguments import SCORES_ONLY
from .configs import ELEMENTS, launch_options, per_tile
from .formulas import OUTSIDE as OUTSIDE_KIND
from .formulas import log1p, objective_terms
from .tile import power_of_two_ratio, uncap


@triton.jit
def combine(partials_ptr, reference, row, K, TILES, PER_TILE: tl.constexpr, BLOCK_T: tl.constexpr):
    """(m, rest, moment) of each row: the tiles' partials under their common offset."""
    plane = tl.cast(TILES, tl.int64) * K  # TILES may be the constant 1
    live = (row < K)[None, :]
    largest = reference
    if PER_TILE:  # the target must not take part while others are in sight: its logit is no multiple of ln 2
        largest = reference - 60.0
    for start in range(0, TILES, BLOCK_T):
        tile = start + tl.arange(0, BLOCK_T)
        at = partials_ptr + tile.to(tl.int64)[:, None] * K + row[None, :]
        mask = (tile < TILES)[:, None] & live
        offset = tl.load(at, mask=mask, other=float("-inf"))
        total = tl.load(at + plane, mask=mask, other=0.0)
        largest = tl.maximum(largest, tl.max(tl.where(total != 0, offset, float("-inf")), 0))
    rest = tl.zeros_like(reference)
    moment = tl.zeros_like(reference)
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
def row_scores(reference, offset, rest, moment):
    """(log p, entropy, total) of rows whose target has logit `reference`; rest and moment of the
    others are under `offset`.
    """
    own = tl.exp(reference - offset)
    total = rest + own
    logprobs = tl.where(own > 0.5, -log1p(rest / own), reference - offset - tl.log(total))
    entropy = tl.log(total) - (moment + own * tl.maximum(reference - offset, -1e30)) / total
    return logprobs, entropy, total


@triton.jit
def row_terms(
    at,
    live,
    logprobs,
    advantages_ptr,
    old_ptr,
    ref_ptr,
    KIND: tl.constexpr,
    TAU: tl.constexpr,
    CLIP_LOW: tl.constexpr,
    CLIP_HIGH: tl.constexpr,
    DUAL_CLIP: tl.constexpr,
    BETA: tl.constexpr,
):
    """(loss, coefficient) of rows whose per-token constants are at `at`; empty pointers are what
    the caller did not give.
    """
    advantages = tl.zeros_like(logprobs)
    if advantages_ptr is not None:
        advantages = tl.load(advantages_ptr + at, mask=live, other=0.0)
    old = logprobs
    if old_ptr is not None:
        old = tl.load(old_ptr + at, mask=live, other=0.0)
    ref = logprobs
    if BETA != 0:
        ref = tl.load(ref_ptr + at, mask=live, other=0.0)
    return objective_terms(logprobs, advantages, old, ref, KIND, TAU, CLIP_LOW, CLIP_HIGH, DUAL_CLIP, BETA)


@triton.jit
def finalise_kernel(
    partials_ptr,
    reference_ptr,
    rows_ptr,
    weights_ptr,
    advantages_ptr,
    old_ptr,
    ref_ptr,
    unit_ptr,
    K,
    TILES,
    KIND: tl.constexpr,
    TAU: tl.constexpr,
    CLIP_LOW: tl.constexpr,
    CLIP_HIGH: tl.constexpr,
    DUAL_CLIP: tl.constexpr,
    BETA: tl.constexpr,
    SOFTCAP: tl.constexpr,
    TEMPERATURE: tl.constexpr,
    PER_TILE: tl.constexpr,
    EXPS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """rows [9, K] in the order of `RowTerms`."""
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    live = row < K
    reference = tl.load(reference_ptr + row, mask=live, other=0.0)
    offset, rest, moment = combine(partials_ptr, reference, row, K, TILES, PER_TILE, BLOCK_T)
    logprobs, entropy, total = row_scores(reference, offset, rest, moment)
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
            KIND,
            TAU,
            CLIP_LOW,
            CLIP_HIGH,
            DUAL_CLIP,
            BETA,
        )
        factor = -coefficient * tl.load(weights_ptr + row, mask=live, other=0.0) / total
        scale = tl.zeros_like(reference) + 1.0
        if PER_TILE:
            factor /= tl.load(unit_ptr)
            power = tl.log2(tl.where(factor == 0, 1.0, tl.abs(factor)))
            room = 15.0 - tl.log2(tl.maximum(rest, 1.0))  # |target| stays under 2^15: a coefficient may be far over 1
            shared = tl.where(power < 0, 0.5 * power, power)  # a small one is shared by both sides
            scale = tl.exp2(tl.floor(tl.minimum(shared, room)))
        target = uncap(-rest, reference, SOFTCAP, TEMPERATURE) * scale
        rounded = target.to(EXPS).to(target.dtype)
        ratio = target / tl.where(rounded == 0, 1.0, rounded)
        tl.store(at + 4 * K, loss, mask=live)
        tl.store(at + 5 * K, coefficient, mask=live)
        tl.store(at + 6 * K, factor / scale * tl.where(tl.abs(ratio - 1) < 0.01, ratio, 1.0), mask=live)
        tl.store(at + 7 * K, scale, mask=live)
        tl.store(at + 8 * K, rounded, mask=live)


class RowTerms(NamedTuple):
    """What `finalise` found, [K] each, in the accumulators' dtype.

    All but the first four only where the objective is known.
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
    reference: Tensor,  # [K]
    exps: torch.dtype,
    head: Head,
    arguments: dict[str, Any] | None = None,
) -> RowTerms:
    """Rows of one chunk; `arguments` are those of `loss_arguments`, None for scores alone."""
    tiles, count = partials.shape[1:]
    rows = torch.empty(len(RowTerms._fields), count, dtype=partials.dtype, device=partials.device)
    if count:
        finalise_kernel[(triton.cdiv(count, 32),)](
            partials_ptr=partials,
            reference_ptr=reference,
            rows_ptr=rows,
            K=count,
            TILES=tiles,
            EXPS=ELEMENTS[exps],
            PER_TILE=per_tile(exps),
            SOFTCAP=float(head.softcap or 0.0),
            TEMPERATURE=float(head.temperature),
            BLOCK_N=32,
            BLOCK_T=16,
            **(arguments or SCORES_ONLY),
            **launch_options(4, 2),
        )
    return RowTerms(*rows.unbind())
