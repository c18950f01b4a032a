"""Whether lists, sets, tuples, intervals and their unions are the same."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

from .arithmetic import Doubt, fraction, infinity
from .values import Quantity, Sequence, Union, Value

if TYPE_CHECKING:
    from .equality import Comparison

UNORDERED = {"{}", "±"}


def sequences(compare: Comparison, a: Sequence, b: Sequence) -> bool:
    """Tuples and intervals in order, sets in any; a bare list in another order is in doubt."""
    brackets = {a.brackets, b.brackets}
    if len(brackets) == 1:
        return _same_brackets(compare, a, b)
    if "±" in brackets and brackets <= {"±", "", "{}"}:
        return compare.same_set(a.items, b.items)
    if brackets & {"", *UNORDERED} or len(a.items) != len(b.items):
        same = compare.same_set(a.items, b.items)
    else:
        same = compare.all_same(a.items, b.items) and not (_is_interval(a) or _is_interval(b))
    if same:
        raise Doubt(f"they differ only in their brackets: {' and '.join(repr(kind) for kind in sorted(brackets))}")
    return False


def _same_brackets(compare: Comparison, a: Sequence, b: Sequence) -> bool:
    if a.brackets in UNORDERED:
        return compare.same_set(a.items, b.items)
    if len(a.items) == len(b.items) and compare.all_same(a.items, b.items):
        return True
    if a.brackets == "" and compare.same_set(a.items, b.items):
        raise Doubt("it is not certain whether the order of the list matters")
    return False


def is_glued(value: Sequence, number: Fraction | None) -> bool:
    """Whether the commas of 1, 234 may have been meant to set thousands apart."""
    items = [fraction(item.expression) if isinstance(item, Quantity) else None for item in value.items]
    if value.brackets not in ("", "()") or number is None or len(items) < 2:
        return False
    glued = Fraction(0)
    for item in items:
        if item is None or item.denominator != 1 or not 0 <= item < 1000:
            return False
        glued = 1000 * glued + item
    return glued == number


class _Piece(NamedTuple):
    """A piece of the number line, whose ends sort: closed ones are 0, open ones 1 and -1."""

    low: Fraction | float
    after_low: int
    high: Fraction | float
    before_high: int


def unions(compare: Comparison, a: Union, b: Union) -> bool:
    """As sets of numbers where every bound is a number, else part by part."""
    pieces = _pieces(a), _pieces(b)
    if pieces[0] is not None and pieces[1] is not None:
        return _merged(pieces[0]) == _merged(pieces[1])
    if compare.same_set(a.parts, b.parts):
        return True
    if len(a.parts) == len(b.parts) == 1:
        return False
    raise Doubt("the unions may cover the same")


def _is_interval(value: Sequence) -> bool:
    """Half-open brackets, or bounds that are numbers in ascending order."""
    piece = _piece(value)
    return value.brackets in ("[)", "(]") or (piece is not None and piece.low < piece.high)


def _pieces(union: Union) -> list[_Piece] | None:
    pieces: list[_Piece] = []
    for part in union.parts:
        if isinstance(part, Sequence) and part.brackets == "{}":
            found = [_piece(Sequence("[]", (item, item))) for item in part.items]
        else:
            found = [_piece(part)]
        if None in found:
            return None
        pieces += [piece for piece in found if piece is not None]
    return pieces


def _piece(value: Value) -> _Piece | None:
    if not isinstance(value, Sequence) or len(value.items) != 2 or value.brackets not in ("()", "[]", "[)", "(]"):
        return None
    low, high = map(_bound, value.items)
    if low is None or high is None:
        return None
    return _Piece(low, int(value.brackets[0] == "("), high, -int(value.brackets[1] == ")"))


def _bound(value: Value) -> Fraction | float | None:
    if not isinstance(value, Quantity) or value.unit is not None:
        return None
    sign = infinity(value.expression)
    return sign * math.inf if sign else fraction(value.expression)


def _merged(pieces: list[_Piece]) -> list[_Piece]:
    """The same numbers in as few pieces as possible, from the left."""
    result: list[_Piece] = []
    for piece in sorted(pieces):
        if (piece.low, piece.after_low) > (piece.high, piece.before_high):
            continue  # empty
        last = result[-1] if result else None
        touches = last is not None and (
            piece.low < last.high or (piece.low == last.high and 0 in (piece.after_low, last.before_high))
        )
        if last is None or not touches:
            result.append(piece)
        else:
            high, before = max((last.high, last.before_high), (piece.high, piece.before_high))
            result[-1] = last._replace(high=high, before_high=before)
    return result
