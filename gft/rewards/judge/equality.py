"""Whether two values are the same: certainly, certainly not, or in doubt.

Each kind of value has one function. It says True or False only where no reader would disagree, and
raises Doubt otherwise: 5 cm for 5, the same numbers with and without braces, 101_2 for 5.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from fractions import Fraction

from . import relations, sets, words
from .arithmetic import Doubt, fraction, same_expression
from .units import UNITS
from .values import (
    PI,
    Clock,
    Date,
    Expression,
    Letter,
    Matrix,
    Numeral,
    Op,
    Quantity,
    Ratio,
    Relation,
    Sequence,
    Symbol,
    Union,
    Unit,
    Value,
    Words,
    symbol_of,
    symbols,
)

CHOICES = "ABCDE"  # b may be meant for the choice B, while r is not R
LARGE_NUMBERS = {"hundred", "thousand", "million", "billion", "trillion"}
RADIANS = Op("/", (PI, Fraction(180)))  # in a degree
HALF_A_DAY = 12 * 3600


class Comparison:
    """Compares values whose texts were read with `flips`. `digits` is that of `same_expression`."""

    def __init__(self, flips: frozenset[str], digits: int) -> None:
        self.flips, self.digits = flips, digits

    def same(self, a: Value, b: Value) -> bool:
        """Whether the values are equal.

        Raises:
            Doubt: no judgement of it is certain.
        """
        if type(a) is type(b):
            return self._one_kind(a, b)
        for one, other in ((a, b), (b, a)):
            if isinstance(one, Relation):
                return relations.relation_and_other(self, one, other)
        for one, other in ((a, b), (b, a)):
            if isinstance(one, Letter):
                return self._letter_and_other(one, other)
        for one, other in ((a, b), (b, a)):
            if isinstance(one, Quantity):
                return self._quantity_and_other(one, other)
            if isinstance(one, Union) and isinstance(other, Sequence):
                return sets.unions(self, one, Union((other,)))
            if isinstance(one, Matrix) and isinstance(other, Sequence):
                entries = sum(one.rows, ())
                if len(entries) != len(other.items) or not self.all_same(entries, other.items):
                    return False
        raise Doubt(f"one is of the kind {type(a).__name__.lower()}, the other {type(b).__name__.lower()}")

    def all_same(self, a: Iterable[Value], b: Iterable[Value]) -> bool:
        """Of pairs in order: one that certainly differs settles it."""
        return every((self.same, *pair) for pair in zip(a, b, strict=True))

    def same_set(self, a: tuple[Value, ...], b: tuple[Value, ...]) -> bool:
        """Whether every value of one is among the others, and the other way round."""
        return every((self._among, item, others) for items, others in ((a, b), (b, a)) for item in items)

    def _among(self, item: Value, others: tuple[Value, ...]) -> bool:
        return not every((lambda other: not self.same(item, other), other) for other in others)

    def expressions(self, a: Expression, b: Expression) -> bool:
        if same_expression(a, b, self.flips, self.digits):
            return True
        one, other = set(symbols(a)), set(symbols(b))
        if len(one) == len(other) == 1 and one != other:
            (name,), (wanted,) = one, other
            lone = isinstance(a, Symbol) and isinstance(b, Symbol)
            if (
                not lone
                and _letter(name) != _letter(wanted)
                and same_expression(relations.renamed(a, {name: wanted}), b, self.flips, self.digits)
            ):
                raise Doubt("they differ in the name of a variable")  # 2k + 1 for 2n + 1; but r is not R
        return False

    def _one_kind(self, a: Value, b: Value) -> bool:
        if isinstance(a, Date):
            return a == b
        return _ONE_KIND[type(a)](self, a, b)

    # Numbers and expressions

    def quantities(self, a: Quantity, b: Quantity) -> bool:
        if a.unit == b.unit:
            return self.expressions(a.expression, b.expression)
        if a.unit is None or b.unit is None:
            plain, other = (a, b) if a.unit is None else (b, a)
            assert other.unit is not None  # they differ
            return self._one_unit(plain.expression, other.expression, other.unit)
        if not (a.unit.known and b.unit.known):
            raise Doubt(f"it is not known how {a.unit.name} and {b.unit.name} compare")
        if a.unit.dimension != b.unit.dimension:
            return False
        return self.expressions(times(a.expression, a.unit.factor), times(b.expression, b.unit.factor))

    def _one_unit(self, plain: Expression, expression: Expression, unit: Unit) -> bool:
        """A number without a unit may be meant in any unit of the kind: 5 cm may be .05 or 50."""
        if unit.name == "dollar" and self.expressions(plain, expression):
            return True  # the dollar sign is put aside
        if unit.name in LARGE_NUMBERS and self.expressions(plain, times(expression, unit.factor)):
            return True
        alike = [other for other in UNITS.values() if unit.known and other.dimension == unit.dimension]
        factors: list[Expression] = [Fraction(1), *(unit.factor / other.factor for other in alike)]
        if unit.dimension == "angle":
            factors.append(RADIANS)
        has_symbols = any(symbols(plain)) or any(symbols(expression))
        if has_symbols or any(self.expressions(plain, times(expression, factor)) for factor in factors):
            raise Doubt(f"only one of them has a unit, {unit.name}")
        return False

    def _quantity_and_other(self, a: Quantity, b: Value) -> bool:
        """False where a number cannot be meant by the other, else in doubt."""
        number = fraction(a.expression)
        if any(symbols(a.expression)):
            raise Doubt("an expression is compared with something else")
        if isinstance(b, Sequence):
            maybe = sets.is_glued(b, number) or (bool(b.items) and self.same_set((a,), b.items))
        elif isinstance(b, Words):
            maybe = words.may_be_number(b, number)
        elif isinstance(b, Numeral):
            maybe = number == _worth(b)
        elif isinstance(b, Ratio):
            maybe = len(b.parts) == 2 and self.same(Quantity(Op("/", tuple(map(expression_of, b.parts)))), a)
        else:
            maybe = not isinstance(b, (Matrix, Union)) or (isinstance(b, Matrix) and len(b.rows) == len(b.rows[0]) == 1)
        if maybe:
            raise Doubt(f"a number may be meant by the {type(b).__name__.lower()}")
        return False

    def _letter_and_other(self, a: Letter, b: Value) -> bool:
        if a.marked or a.letter in CHOICES:
            raise Doubt("it is not certain whether the letter is a symbol or a choice")
        return self.same(symbol_of(a), b)

    # Other kinds

    def letters(self, a: Letter, b: Letter) -> bool:
        if a.letter == b.letter or a.letter.upper() != b.letter.upper():
            return a.letter == b.letter
        if a.marked and b.marked:  # (b) and (B)
            return True
        if a.letter.upper() in CHOICES:
            raise Doubt("it is not certain whether the letter is a symbol or a choice")
        return False

    def matrices(self, a: Matrix, b: Matrix) -> bool:
        if len(a.rows) != len(b.rows) or len(a.rows[0]) != len(b.rows[0]):
            return False
        return self.all_same(sum(a.rows, ()), sum(b.rows, ()))

    def ratios(self, a: Ratio, b: Ratio) -> bool:
        if len(a.parts) != len(b.parts):
            return False
        first, *one = map(expression_of, a.parts)
        second, *other = map(expression_of, b.parts)
        return every(
            (self.expressions, Op("*", (x, second)), Op("*", (y, first))) for x, y in zip(one, other, strict=True)
        )

    def numerals(self, a: Numeral, b: Numeral) -> bool:
        if a.base != b.base and _worth(a) == _worth(b):
            raise Doubt("the number is the same in another base")
        return a == b

    def clocks(self, a: Clock, b: Clock) -> bool:
        if a.half and b.half:
            return a.seconds == b.seconds
        if (a.seconds - b.seconds) % HALF_A_DAY == 0 and a != b:
            raise Doubt("it is not certain whether morning or afternoon is meant")
        return a == b


def every(questions: Iterable[tuple]) -> bool:
    """Whether all questions (function, argument, ...) are answered with True. One False settles it.

    Raises:
        Doubt: none is answered with False, and one is in doubt.
    """
    doubt = None
    for function, *arguments in questions:
        try:
            if not function(*arguments):
                return False
        except Doubt as error:
            doubt = error
    if doubt is not None:
        raise doubt
    return True


def times(expression: Expression, factor: Expression) -> Expression:
    return Op("*", (expression, factor))


def expression_of(value: Value) -> Expression:
    if not isinstance(value, Quantity) or value.unit is not None:
        raise Doubt("a number is missing")
    return value.expression


def _letter(symbol: str) -> str:
    """The letter of x_1, x' and X."""
    return re.split("['_]", symbol)[0].lower()


def _worth(numeral: Numeral) -> int:
    try:
        return int(numeral.digits, numeral.base)
    except ValueError as error:
        raise Doubt(f"{numeral.digits} is no number in base {numeral.base}") from error


_ONE_KIND: dict[type, Callable[..., bool]] = {
    Quantity: Comparison.quantities,
    Letter: Comparison.letters,
    Sequence: sets.sequences,
    Union: sets.unions,
    Matrix: Comparison.matrices,
    Relation: relations.relations,
    Ratio: Comparison.ratios,
    Numeral: Comparison.numerals,
    Clock: Comparison.clocks,
    Words: lambda _, a, b: words.same_words(a, b),
}
