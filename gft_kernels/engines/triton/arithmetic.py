"""Small functions of the kernels' arithmetic, each in the precision of its argument.

A kernel is compiled for constants and for the types of its arguments. Numbers that a schedule may
change from step to step are arguments, fp64 scalars, so that a new one compiles nothing.
"""

import triton
import triton.language as tl


@triton.jit
def number(x, like):
    """The number x in the precision of `like` (as it stands it would widen fp32 rows to fp64)."""
    return tl.full((), x, like.dtype)


@triton.jit
def clamp(x, low, high):
    return tl.minimum(tl.maximum(x, number(low, x)), number(high, x))


@triton.jit
def log1p(x):
    """log(1 + x) for x >= 0 to the last digits: for small x, the series of 2 atanh(x / (2 + x))."""
    t = x / (2.0 + x)
    q = t * t
    series = 1.0 / 17
    for n in tl.static_range(8):
        series = 1.0 / (15 - 2 * n) + q * series
    return tl.where(x < 0.25, 2.0 * t * series, tl.log(1.0 + x))


@triton.jit
def tanh(x):
    e = tl.exp(-2.0 * tl.abs(x))
    t = (1.0 - e) / (1.0 + e)
    return tl.where(x < 0, -t, t)


@triton.jit
def power_of_two_above(x):
    """The smallest k ln 2 >= x, up to rounding."""
    return tl.ceil(x * 1.4426950408889634) * 0.6931471805599453


@triton.jit
def power_of_two_ratio(x):
    """e^x as an exact power of two, for x a difference of two results of `power_of_two_above`."""
    return tl.exp2(tl.floor(x * 1.4426950408889634 + 0.5))
