"""The objectives in Triton: loss and coefficient of a row from its log-prob and constants.

The formulas are those of losses/objectives.py and ratios.py, with the same bounds on a ratio (e^60)
and the same 0 * -inf = 0. A test holds the two together on every branch. KIND is one of the
constants below, chosen by `objective_numbers` on the host. The other parameters are fp64 scalars at
run time, so that a new tau compiles nothing. They are rounded to the rows' precision where they
meet them.
"""

import triton
import triton.language as tl

from .arithmetic import clamp, number

OUTSIDE = tl.constexpr(0)  # no kernel formula: the caller takes the coefficients by autograd
SFT = tl.constexpr(1)
DFT = tl.constexpr(2)
GFT = tl.constexpr(3)
REINFORCE = tl.constexpr(4)
GRPO = tl.constexpr(5)
CISPO = tl.constexpr(6)
GIVEN = tl.constexpr(7)  # the coefficients come in place of the advantages

LOWEST = tl.constexpr(-8.507058665963222e37)  # finfo(float32).min / 4, where the log of a ratio is cut
MOST = tl.constexpr(1.1420073898156842e26)  # e^60


@triton.jit
def times(coefficient, logprobs):
    """coefficient * logprobs, with 0 * -inf = 0."""
    return tl.where(coefficient == 0, 0.0, coefficient * logprobs)


@triton.jit
def log_ratio(logprobs, other):
    return tl.maximum(logprobs, LOWEST) - tl.maximum(other, LOWEST)


@triton.jit
def objective_terms(
    logprobs,
    advantages,
    old,
    ref,
    tau,
    clip_low,
    clip_high,
    dual_clip,
    beta,
    kl_clamp,
    KIND: tl.constexpr,
    PENALISED: tl.constexpr,
    CORRECTED: tl.constexpr,
):
    """(loss, d loss / d log p) of each row. Infinite clips cut nothing. tau may be [K]."""
    p = tl.exp(logprobs)
    if KIND == GRPO:
        delta = log_ratio(logprobs, old)
        bounded = clamp(delta, -60.0, 60.0)
        ratio = tl.exp(bounded)
        clipped = clamp(ratio, 1.0 - clip_low, 1.0 + clip_high)
        plain = -ratio * advantages
        loss = tl.maximum(plain, -clipped * advantages)
        coefficient = tl.where((plain >= -clipped * advantages) & (bounded == delta) & (logprobs >= LOWEST), plain, 0.0)
        most = -number(dual_clip, logprobs) * advantages
        cut = (advantages < 0) & (loss > most)
        loss = tl.where(cut, most, loss)
        coefficient = tl.where(cut, 0.0, coefficient)
    else:
        if KIND == GIVEN:
            coefficient = advantages
        elif KIND == SFT:
            coefficient = -tl.full(logprobs.shape, 1.0, logprobs.dtype)
        elif KIND == DFT:
            coefficient = -p
        elif KIND == GFT:
            coefficient = -advantages * tl.where(p < tau, p, 1.0)
        elif KIND == CISPO:
            ratio = tl.exp(clamp(log_ratio(logprobs, old), -60.0, 60.0))
            coefficient = -clamp(ratio, 1.0 - clip_low, 1.0 + clip_high) * advantages
        else:
            coefficient = -advantages
        loss = coefficient * logprobs if KIND == SFT else times(coefficient, logprobs)
    broken = logprobs != logprobs  # minimum and maximum drop a NaN
    loss = tl.where(broken, logprobs, loss)
    coefficient = tl.where(broken, logprobs, coefficient)
    if PENALISED:
        delta = -log_ratio(logprobs, ref)
        power = tl.exp(tl.minimum(delta, 60.0))
        k3 = power - delta - 1.0
        slope = 1.0 - power
        if CORRECTED:
            ratio = tl.exp(clamp(log_ratio(logprobs, old), -60.0, 60.0))
            k3 = tl.minimum(ratio * k3, MOST)
            slope = clamp(-ratio * delta, -MOST, MOST)
        most = number(kl_clamp, logprobs)
        loss += number(beta, logprobs) * tl.where(k3 > most, most, k3)
        sloped = (logprobs >= LOWEST) & ~(k3 > most)
        coefficient += tl.where(sloped, number(beta, logprobs) * slope, 0.0)
    return loss, coefficient
