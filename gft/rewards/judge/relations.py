"""Whether equations and inequalities say the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import TYPE_CHECKING

from .arithmetic import Doubt, same_expression
from .values import Expression, Op, Quantity, Relation, Sequence, Symbol, Value, symbol_of, symbols

if TYPE_CHECKING:
    from .equality import Comparison

TURNED = {">": "<", ">=": "<="}


def relation_and_other(compare: Comparison, relation: Relation, other: Value) -> bool:
    """x = 5 answers like 5, and 6/2 = 3 like 3. Anything else is in doubt."""
    left, *values = map(symbol_of, relation.operands)
    if relation.operators == ("in",) and _name(left):
        return compare.same(values[0], other)
    if set(relation.operators) == {"="}:
        if _name(left):
            if not _names(left) & _names(*values) and _all_same(compare, values):
                return compare.same(values[0], other)
        elif not _names(left, *values) and _all_same(compare, [left, *values]):
            return compare.same(left, other)
    raise Doubt("a relation is compared with something else")


def relations(compare: Comparison, a: Relation, b: Relation) -> bool:
    a, b = _ascending(a), _ascending(b)
    if a.operators == b.operators and _certainly(lambda: compare.all_same(a.operands, b.operands)):
        return True
    if a.operators == b.operators == ("=",):
        return _equations(compare, a.operands, b.operands)
    if a.operators == b.operators == ("in",) and a.operands[0] == b.operands[0]:
        return compare.same(a.operands[1], b.operands[1])
    if _bounds_of(a) and _bounds_of(a) == _bounds_of(b):
        return False
    raise Doubt("the relations may say the same")


def _equations(compare: Comparison, a: tuple[Value, ...], b: tuple[Value, ...]) -> bool:
    """y = f(x) by f where both have that form, others if they are multiples of each other."""
    for one in (a, a[::-1]):
        for other in (b, b[::-1]):
            if _name(one[0]) and one[0] == other[0] and not _names(one[0]) & _names(one[1], other[1]):
                return compare.same(one[1], other[1])
            if (
                _name(one[0])
                and _name(other[0])
                and not _names(one[1], other[1])
                and not compare.same(one[1], other[1])
            ):
                return False  # x = 5 and y = 6; but x = 5 and y = 5 may name the same thing
    sides = [_difference(a), _difference(b)]
    if None not in sides and _multiples(compare, *sides):  # type: ignore[arg-type]
        return True
    raise Doubt("the equations may have the same solutions")


def _difference(operands: tuple[Value, ...]) -> Expression | None:
    left, right = map(symbol_of, operands)
    if not isinstance(left, Quantity) or not isinstance(right, Quantity) or left.unit or right.unit:
        return None
    return Op("-", (left.expression, right.expression))


def _multiples(compare: Comparison, a: Expression, b: Expression) -> bool:
    """Whether a / b is one number everywhere: a(x) b(y) = a(y) b(x), and neither is always 0."""

    def equal(one: Expression, other: Expression) -> bool:
        return same_expression(one, other, compare.flips, compare.digits)

    there_a, there_b = (renamed(side, {name: f"{name} elsewhere" for name in symbols(side)}) for side in (a, b))
    zero = Fraction(0)
    return _certainly(
        lambda: (
            equal(Op("*", (a, there_b)), Op("*", (b, there_a)))
            and set(symbols(a)) == set(symbols(b))
            and not equal(a, zero)
            and not equal(b, zero)
        )
    )


def renamed(expression: Expression, names: Mapping[str, str]) -> Expression:
    if isinstance(expression, Symbol):
        return Symbol(names.get(expression.name, expression.name))
    if isinstance(expression, Op):
        return Op(expression.name, tuple(renamed(argument, names) for argument in expression.arguments))
    return expression


def _ascending(relation: Relation) -> Relation:
    """x > 3 as 3 < x."""
    operands = tuple(map(symbol_of, relation.operands))
    if set(relation.operators) <= TURNED.keys():
        return Relation(operands[::-1], tuple(TURNED[sign] for sign in relation.operators[::-1]))
    return Relation(operands, relation.operators)


def _bounds_of(relation: Relation) -> str:
    """The symbol that an inequality like 1 < x <= 3 bounds by numbers, "" for any other."""
    names = [_name(operand) for operand in relation.operands if _names(operand)]
    return names[0] if len(names) == 1 and set(relation.operators) <= {"<", "<="} else ""


def _name(value: Value) -> str:
    """The name of a lone symbol, or that of f in f(x)."""
    expression = value.expression if isinstance(value, Quantity) and value.unit is None else None
    if isinstance(expression, Op) and expression.name.startswith("apply "):
        return expression.name
    return expression.name if isinstance(expression, Symbol) else ""


def _names(*values: Value) -> set[str]:
    """Symbols of values; of f(x) only f, because x is on both sides of f(x) = 2x."""
    found: set[str] = set()
    for value in values:
        if isinstance(value, Quantity):
            found |= {_name(value)} if _name(value) else set(symbols(value.expression))
        elif isinstance(value, Sequence):
            found |= _names(*value.items)
    return found


def _all_same(compare: Comparison, values: list[Value]) -> bool:
    return all(compare.same(values[0], value) for value in values[1:])


def _certainly(question: Callable[[], bool]) -> bool:
    try:
        return question()
    except Doubt:
        return False
