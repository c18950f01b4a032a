"""Whether two expressions are the same: exactly, or at points where every symbol has a value.

Numbers that are fractions are compared as fractions. Anything else is computed with far more digits
than the texts have, at random points. Two expressions that agree at all of them are the same, and
two that clearly differ at one of them are not. Between the two nothing is certain.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import mpmath
from mpmath import mp

from .values import INFINITY, PI, Expression, Op, Symbol, operations, symbols

Number = Any  # mpmath's real or complex number; it has no types

LARGEST_BITS = 20_000  # of a number that a power makes; 5^5^5^5 would fill every memory
LARGEST_FACTORIAL = 500
DIGITS, SPARE_DIGITS = 60, 20
WIDEST = 30  # decimal places between the largest and the smallest number on the way
LARGEST_ARGUMENT = 10**40  # of a function
SCALES = ((0.1, 1), (1, 3), (3, 30), (30, 300))  # of the positive points
MIXED_POINTS = 2  # with both signs: sqrt(x^2) is x only at positive ones
EXACT = {"+", "-", "*", "/", "^", "abs", "factorial", "binom"}  # operations that keep to fractions
CONSTANTS = {"e": mpmath.e, "i": 1j}  # if they are read as such


class Doubt(ValueError):
    """Why it is not certain whether two answers are equal."""


class _NoValue(Exception):
    """The expression has no value at this point, or none that this module computes."""


def same_expression(a: Expression, b: Expression, flips: frozenset[str], digits: int = 0) -> bool:
    """Whether a and b are equal wherever both are defined.

    Args:
        flips: "constants" reads e and i as the constants, "common logarithm" takes log to base 10.
        digits: of the longest number in a or b.

    Raises:
        Doubt: they agree at some points only, or are too large to compute.
    """
    infinite = infinity(a), infinity(b)
    if any(infinite):
        return infinite[0] == infinite[1]
    exact = fraction(a), fraction(b)
    if exact[0] is not None and exact[1] is not None:
        return exact[0] == exact[1]
    names = sorted({*symbols(a), *symbols(b)} - (CONSTANTS.keys() if "constants" in flips else set()))
    with mp.workdps(DIGITS + 2 * digits):
        same = _agree(a, b, names, flips)
    if not same and _applies(a) != _applies(b):
        raise Doubt("what the function is worth is not known")  # f(2) may be 4
    return same


def _applies(expression: Expression) -> bool:
    return any(operation.name.startswith("apply ") for operation in operations(expression))


def _agree(a: Expression, b: Expression, names: list[str], flips: frozenset[str]) -> bool:
    positive: list[bool | None] = []
    mixed: list[bool | None] = []
    for i in range(len(SCALES) + MIXED_POINTS if names else 1):
        found = positive if i < len(SCALES) else mixed
        numbers = _Numbers(_point(names, i), flips)
        try:
            pair = numbers.value(a), numbers.value(b)
        except (_NoValue, ZeroDivisionError, OverflowError, ValueError):
            continue
        difference = abs(pair[0] - pair[1]) / numbers.largest
        near, far = mpmath.mpf(10) ** (SPARE_DIGITS - mp.dps), mpmath.mpf(10) ** (SPARE_DIGITS - DIGITS)
        if numbers.largest > numbers.smallest * mpmath.mpf(10) ** WIDEST:
            continue  # a small term would be lost beside a large one
        found.append(True if difference < near else False if difference > far and not numbers.branched else None)
    if False in positive:
        return False
    if len(positive) >= (2 if names else 1) and all(positive) and all(mixed) and (mixed or not names):
        return True
    raise Doubt("the expressions agree at some points only" if True in positive else "it cannot be computed")


def _point(names: list[str], index: int) -> dict[str, mpmath.mpf]:
    """A value for every symbol, the same in every run."""
    low, high = SCALES[index % len(SCALES)]
    point = {}
    for name in names:
        source = random.Random(f"{name} {index}")
        sign = -1 if index >= len(SCALES) and source.random() < 0.8 else 1
        point[name] = sign * mpmath.mpf(source.uniform(low, high))
    return point


def infinity(expression: Expression) -> int:
    """1 or -1 for plus or minus infinity, else 0."""
    if expression == INFINITY:
        return 1
    if isinstance(expression, Op) and expression.name == "*" and expression.arguments[1] == INFINITY:
        sign = expression.arguments[0]
        return int(sign) if sign in (1, -1) else 0  # type: ignore[arg-type]
    return 0


def fraction(expression: Expression) -> Fraction | None:
    """The exact value of an expression of integers and decimals, None for any other.

    Raises:
        Doubt: it divides by zero, or it is too large.
    """
    if isinstance(expression, Fraction):
        return expression
    if not isinstance(expression, Op) or expression.name not in EXACT:
        return None
    arguments = [fraction(argument) for argument in expression.arguments]
    if None in arguments:
        return None
    return _exact(expression.name, *arguments)  # type: ignore[arg-type]


def _exact(name: str, a: Fraction, b: Fraction = Fraction(0)) -> Fraction | None:
    if name in ("+", "-", "*"):
        return a + b if name == "+" else a - b if name == "-" else a * b
    if (name == "/" and b == 0) or (name == "^" and a == 0 and b <= 0):
        raise Doubt("it divides by zero")
    if name == "/":
        return a / b
    if name == "^" and b.denominator == 1:
        if max(a.numerator.bit_length(), a.denominator.bit_length()) * abs(b) > LARGEST_BITS:
            raise Doubt("it is too large to compute")
        return a**b.numerator
    if name == "abs":
        return abs(a)
    if name == "factorial":
        return Fraction(math.factorial(_small(a)))
    if name == "binom":
        return Fraction(math.comb(_small(a), _small(b)))
    return None


def _small(number: Fraction) -> int:
    if number.denominator != 1 or not 0 <= number <= LARGEST_FACTORIAL:
        raise Doubt(f"factorials and binomials are computed of whole numbers up to {LARGEST_FACTORIAL}")
    return int(number)


class _Numbers:
    """Values of expressions at one point. `branched`: a root or logarithm had several values.

    `largest` and `smallest` are the sizes met on the way, zero and the results of sums apart: what
    cancels there is noise.
    """

    def __init__(self, point: dict[str, Number], flips: frozenset[str]) -> None:
        self.point, self.flips, self.branched = point, flips, False
        self.largest = self.smallest = mpmath.mpf(1)

    def value(self, expression: Expression) -> Number:
        value = self._value(expression)
        if value and not (isinstance(expression, Op) and expression.name in "+-"):
            self.largest, self.smallest = max(self.largest, abs(value)), min(self.smallest, abs(value))
        return value

    def _value(self, expression: Expression) -> Number:
        if isinstance(expression, Fraction):
            return mpmath.mpf(expression.numerator) / expression.denominator
        if isinstance(expression, Symbol):
            return self._symbol(expression)
        values = [self.value(argument) for argument in expression.arguments]
        if max(map(abs, values)) > LARGEST_ARGUMENT and expression.name not in (*_OPERATORS, "^", "root"):
            raise _NoValue("too large")
        if expression.name in _OPERATORS:
            return _OPERATORS[expression.name](*values)
        if expression.name.startswith("apply "):
            return _any_function(expression.name, values)
        if expression.name == "^":
            return self._power(*values)
        if expression.name == "root":
            return self._root(*values)
        if expression.name in ("ln", "log"):
            return self._logarithm(expression.name, *values)
        if expression.name in ("arcsin", "arccos"):
            self.branched |= not (_is_real(values[0]) and abs(values[0]) <= 1)
        if expression.name in _FUNCTIONS:
            return _FUNCTIONS[expression.name](*values)
        raise _NoValue(expression.name)

    def _symbol(self, symbol: Symbol) -> Number:
        if symbol == PI:
            return +mp.pi
        if symbol.name in self.point:
            return self.point[symbol.name]
        if symbol.name in CONSTANTS:
            return mpmath.mpmathify(CONSTANTS[symbol.name])
        raise _NoValue(symbol.name)

    def _power(self, base: Number, exponent: Number) -> Number:
        if base == 0:
            if _is_real(exponent) and exponent.real > 0:
                return mpmath.mpf(0)
            raise _NoValue("zero to a power that is not positive")
        if abs(exponent) * (1 + abs(mpmath.log(abs(base)))) > LARGEST_BITS:
            raise _NoValue("too large")
        self.branched |= not mpmath.isint(exponent) and not (_is_real(base) and base.real > 0)
        return mpmath.power(base, exponent)

    def _root(self, radicand: Number, degree: Number) -> Number:
        if not mpmath.isint(degree) or not 1 <= degree.real <= 100:
            raise _NoValue("a root of this degree")
        n = int(degree.real)
        if _is_real(radicand) and radicand.real < 0 and n % 2:
            return -mpmath.root(-radicand.real, n)
        self.branched |= not (_is_real(radicand) and radicand.real >= 0)
        return mpmath.root(radicand, n)

    def _logarithm(self, name: str, number: Number, base: Number | None = None) -> Number:
        self.branched |= not (_is_real(number) and number.real > 0)
        if base is not None:
            self.branched |= not (_is_real(base) and base.real > 0)
            return mpmath.log(number) / mpmath.log(base)
        common = name == "log" and "common logarithm" in self.flips
        return mpmath.log(number) / (mpmath.log(10) if common else 1)


def _is_real(number: Number) -> bool:
    return number.imag == 0


def _any_function(name: str, values: list[Number]) -> Number:
    """A function of which nothing is known: its values at different arguments do not agree."""
    source = random.Random(name)
    return (
        sum(source.uniform(1, 2) * mpmath.sin(source.uniform(1, 2) * value + 1) for value in values) + source.random()
    )


_OPERATORS: dict[str, Callable[..., Number]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "abs": abs,
}


def _bounded(function: Callable[[Number], Number]) -> Callable[[Number], Number]:
    """A function that grows as exp does, where its value is of a size that is computed."""

    def bounded(number: Number) -> Number:
        if abs(number) > LARGEST_BITS:
            raise _NoValue("too large")
        return function(number)

    return bounded


_FUNCTIONS: dict[str, Callable[..., Number]] = {
    **{name: getattr(mpmath, name) for name in ("sin", "cos", "tan", "sec", "csc", "cot", "tanh")},
    **{name: _bounded(getattr(mpmath, name)) for name in ("exp", "sinh", "cosh")},
    **{"arcsin": mpmath.asin, "arccos": mpmath.acos, "arctan": mpmath.atan},
}
