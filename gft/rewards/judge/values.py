"""What an answer can be: a number or expression, a set, an interval, an equation, words, a time."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple


class Symbol(NamedTuple):
    """A letter with its case, primes and subscript: R, r, x', x_{1} are four symbols."""

    name: str


class Op(NamedTuple):
    """An operation of expressions: + - * / ^ root, or the name of a function."""

    name: str
    arguments: tuple[Expression, ...]


Expression = Fraction | Symbol | Op

INFINITY = Symbol("infinity")
PI = Symbol("pi")


class Unit(NamedTuple):
    """`factor` base units of `dimension`. A unit that is not known is its own dimension."""

    name: str
    dimension: str
    factor: Fraction
    known: bool


class Quantity(NamedTuple):
    """A number or an expression, with a unit where one is given."""

    expression: Expression
    unit: Unit | None = None


class Letter(NamedTuple):
    """One letter alone: a symbol, or a choice. "(B)" and "B)" are marked as choices."""

    letter: str
    marked: bool


class Sequence(NamedTuple):
    """Several values. `brackets` is "()", "[)", "{}" and so on, or "" without any.

    (1, 2) may be a pair or an open interval: they compare alike. "±" is the two values of a ± b.
    """

    brackets: str
    items: tuple[Value, ...]


class Union(NamedTuple):
    """A union of intervals or sets."""

    parts: tuple[Value, ...]


class Matrix(NamedTuple):
    rows: tuple[tuple[Value, ...], ...]


class Relation(NamedTuple):
    """An equation, an inequality or a chain of them: operands a, b, c and operators <, <=."""

    operands: tuple[Value, ...]
    operators: tuple[str, ...]


class Ratio(NamedTuple):
    parts: tuple[Value, ...]


class Numeral(NamedTuple):
    """Digits in a base, 101_2."""

    digits: str
    base: int


class Clock(NamedTuple):
    """A time of day in seconds. `half` is "am", "pm" or "" where it is not said."""

    seconds: int
    half: str


class Date(NamedTuple):
    year: int
    month: int
    day: int


class Words(NamedTuple):
    """Text that is no mathematics, as it is written."""

    text: str


Value = (
    Quantity | Letter | Sequence | Union | Matrix | Relation | Ratio | Numeral | Clock | Date | Words  # one a kind
)


def symbols(expression: Expression) -> Iterator[str]:
    """Names of the symbols of an expression, constants apart."""
    if isinstance(expression, Symbol):
        if expression not in (INFINITY, PI):
            yield expression.name
    elif isinstance(expression, Op):
        for argument in expression.arguments:
            yield from symbols(argument)


def operations(expression: Expression) -> Iterator[Op]:
    """Every operation of an expression, the outermost first."""
    if isinstance(expression, Op):
        yield expression
        for argument in expression.arguments:
            yield from operations(argument)


def symbol_of(value: Value) -> Value:
    """A letter as the symbol that it is in an expression; any other value is itself."""
    return Quantity(Symbol(value.letter)) if isinstance(value, Letter) else value
