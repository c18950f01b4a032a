"""losses/objectives.py in Triton: loss and coefficient of a row from its log-prob and its constants.

The formulas are those of that file, including where a ratio stops (e^60) and what 0 * -inf is. A
test holds the two together on every branch. KIND is one of the constants below, chosen by
`objective_constants` on the host.
"""

import triton
import triton.language as tl

OUTSIDE = tl.constexpr(0)  # no kernel formula: the caller takes the coefficients by autograd
SFT = tl.constexpr(1)
DFT = tl.constexpr(2)
GFT = tl.constexpr(3)
REINFORCE = tl.constexpr(4)
GRPO = tl.constexpr(5)
CISPO = tl.constexpr(6)
GIVEN = tl.constexpr(7)  # the coefficients come in place of the advantages

LOWEST = tl.constexpr(-8.507058665963222e37)  # finfo(float32).min / 4, where the log of a ratio is cut


@triton.jit
def times(coefficient, logprobs):
    return tl.where(coefficient == 0, 0.0, coefficient * logprobs)


@triton.jit
def clamp(x, low: tl.constexpr, high: tl.constexpr):
    """x within low..high, the bounds in x's own precision (a plain constant is fp32 in some
    releases).
    """
    return tl.minimum(tl.maximum(x, tl.full((), low, x.dtype)), tl.full((), high, x.dtype))


@triton.jit
def log_ratio(logprobs, other):
    return tl.maximum(logprobs, LOWEST) - tl.maximum(other, LOWEST)


@triton.jit
def log1p(x):
    """log(1 + x) for x >= 0 to the last digits: 2 atanh(x / (2 + x)) by its series where x is
    small.
    """
    t = x / (2.0 + x)
    q = t * t
    series = 1.0 / 17
    for n in tl.static_range(8):
        series = 1.0 / (15 - 2 * n) + q * series
    return tl.where(x < 0.25, 2.0 * t * series, tl.log(1.0 + x))


@triton.jit
def objective_terms(
    logprobs,
    advantages,
    old,
    ref,
    KIND: tl.constexpr,
    TAU: tl.constexpr,
    CLIP_LOW: tl.constexpr,
    CLIP_HIGH: tl.constexpr,
    DUAL_CLIP: tl.constexpr,
    BETA: tl.constexpr,
):
    """(loss, d loss / d log p) of each row; DUAL_CLIP None and BETA 0 are none."""
    p = tl.exp(logprobs)
    if KIND == GRPO:
        delta = log_ratio(logprobs, old)
        bounded = clamp(delta, -60.0, 60.0)
        ratio = tl.exp(bounded)
        clipped = clamp(ratio, 1.0 - CLIP_LOW, 1.0 + CLIP_HIGH)
        plain = -ratio * advantages
        loss = tl.maximum(plain, -clipped * advantages)
        coefficient = tl.where((plain >= -clipped * advantages) & (bounded == delta) & (logprobs >= LOWEST), plain, 0.0)
        if DUAL_CLIP is not None:
            cut = (advantages < 0) & (loss > -DUAL_CLIP * advantages)
            loss = tl.where(cut, -DUAL_CLIP * advantages, loss)
            coefficient = tl.where(cut, 0.0, coefficient)
    else:
        if KIND == GIVEN:
            coefficient = advantages
        elif KIND == SFT:
            coefficient = -tl.full(logprobs.shape, 1.0, logprobs.dtype)
        elif KIND == DFT:
            coefficient = -p
        elif KIND == GFT:
            coefficient = -advantages * tl.where(p < TAU, p, 1.0)
        elif KIND == CISPO:
            ratio = tl.exp(clamp(log_ratio(logprobs, old), -60.0, 60.0))
            coefficient = -clamp(ratio, 1.0 - CLIP_LOW, 1.0 + CLIP_HIGH) * advantages
        else:
            coefficient = -advantages
        loss = coefficient * logprobs if KIND == SFT else times(coefficient, logprobs)
    broken = logprobs != logprobs  # minimum and maximum drop a NaN
    loss = tl.where(broken, logprobs, loss)
    coefficient = tl.where(broken, logprobs, coefficient)
    if BETA != 0:
        delta = -log_ratio(logprobs, ref)
        power = tl.exp(tl.minimum(delta, 60.0))
        loss += BETA * (power - delta - 1.0)
        coefficient += tl.where(logprobs >= LOWEST, BETA * (1.0 - power), 0.0)
    return loss, coefficient
