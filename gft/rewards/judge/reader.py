r"""From the text of an answer to its value.

Where a spelling has two meanings that are both in use, `flips` names the ones read in the second
way. Whoever compares two answers reads both in every way: see gft.rewards.judge.verdict.
"""

from __future__ import annotations

import re
from fractions import Fraction

from .cursor import END
from .expressions import Expressions
from .spelling import COMMA_GROUPED, Token, Unreadable, tokens
from .units import named, unit_of
from .values import (
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
    Union,
    Value,
    Words,
)

RELATIONS = {"=": "=", "<": "<", ">": ">", "le": "<=", "ge": ">=", "in": "in", "ne": "!="}
MATRICES = {"pmatrix", "bmatrix"}
LONGEST_PRODUCT = 3  # letters that stand together: abc
MOST_ITEMS = 50  # of a list: they are compared with each other
ORDINALS = ("st", "nd", "rd", "th")
CONNECTORS = (("word", "and"), ("word", "or"))

STYLED = re.compile(r"\\(?:text|textbf|textit|textrm|textnormal|mathrm|mathbf|mbox)\s*\{([^{}\\]*)\}")
LETTER = re.compile(r"(\(?)([A-Za-z])(\)?)[.:]?")
CLOCK = re.compile(r"([0-9]{1,2})(?::([0-5][0-9]))?(?::([0-5][0-9]))?\s*(?:([ap])\.?\s?m\.?)?", re.IGNORECASE)
DATE = re.compile(r"([0-9]{4})-([0-9]{1,2})-([0-9]{1,2})")
NUMERAL = re.compile(r"([0-9][0-9A-F]*)_(?:([2-9])|\{\s*([0-9]{1,2})\s*\})")
DATE_LIKE = re.compile(r"[0-9]{1,4}([-/.])[0-9]{1,2}\1[0-9]{1,4}")
DECIMAL_COMMA = re.compile(r"-?(?![0-9]{1,3}(?:,[0-9]{3})+$)[0-9]{1,3}(?:\.?[0-9]{3})*,[0-9]+")
RANGE = re.compile(r"[0-9]+\s*-\s*[0-9]+")
LETTERS_ALONE = re.compile(r"(?=.*[A-Za-z]{2})[A-Za-z]+(?:[ -][A-Za-z]+)*")
PRODUCT = re.compile(r"(?!yes$|no$|odd$|pi$)(?:[a-z]{2,3}|[A-Z]{2})")  # ABC names an angle or an order
PHRASE = re.compile(r"(?=.*[A-Za-z]{2})[A-Za-z0-9\s,.'()-]+")


def read(text: str, flips: frozenset[str] = frozenset()) -> Value:
    """The value of an answer that `spelling.unicode_as_latex` has gone over.

    Raises:
        Unreadable: it has none that is certain.
    """
    plain = unstyled(text)
    special = _special(plain, styled=plain != text, flips=flips)
    if special is not None:
        return special
    if "decimal comma" in flips and DECIMAL_COMMA.fullmatch(text):
        text = text.replace(".", "").replace(",", ".")
    if "commas" in flips:
        text = COMMA_GROUPED.sub(lambda group: group[0].replace(",", " , "), text)
    text = COMMA_GROUPED.sub(lambda group: group[0].replace(",", ""), text)
    try:
        return _simplest(_Reader(_units_apart(tokens(text)), flips).value())
    except Unreadable:
        if PHRASE.fullmatch(plain):
            return Words(plain)
        raise


def unstyled(text: str) -> str:
    r"""The text without \text{} and its like around words."""
    return " ".join(STYLED.sub(r" \1 ", text).split())


def _special(plain: str, styled: bool, flips: frozenset[str]) -> Value | None:
    """A form of its own that the grammar of expressions would misread."""
    if match := LETTER.fullmatch(plain):
        return Letter(match[2], marked=bool(match[1] or match[3]))
    if (match := CLOCK.fullmatch(plain)) and (match[4] or (match[2] and "clock" not in flips)):
        return _clock(match)
    if match := DATE.fullmatch(plain):
        return Date(*map(int, match.groups()))
    if match := NUMERAL.fullmatch(plain):
        return Numeral(match[1].lstrip("0") or "0", int(match[2] or match[3]))
    if DATE_LIKE.fullmatch(plain):
        raise Unreadable("it may be a date")
    if RANGE.fullmatch(plain) and "range" in flips:
        low, high = (Quantity(Fraction(bound)) for bound in plain.split("-"))
        return Sequence("-", (low, high))
    if LETTERS_ALONE.fullmatch(plain) and (styled or "product" not in flips or not PRODUCT.fullmatch(plain)):
        return None if plain in ("pi", "infinity", "inf") else Words(plain)
    return None


def _clock(match: re.Match) -> Clock:
    hour, half = int(match[1]), {"a": "am", "p": "pm"}.get((match[4] or "").lower(), "")
    if hour > 24 or (half and not 1 <= hour <= 12):
        raise Unreadable("there is no such hour")
    hour = hour % 12 + 12 * (half == "pm") if half else hour
    return Clock(3600 * hour + 60 * int(match[2] or 0) + int(match[3] or 0), half)


def _units_apart(found: list[Token]) -> list[Token]:
    """Bare letters as units, as in 5 cm and 12 apples, or else one by one, as in 2ab."""
    result: list[Token] = []
    for token in found:
        before = result[-1] if result else END
        if token.kind != "letters" or len(token.text) == 1:
            result.append(token)
        elif _is_unit(token, result):
            result.append(token._replace(kind="word"))
        elif len(token.text) > LONGEST_PRODUCT or (before.kind == "letters" and token.spaced):
            raise Unreadable(f"{token.text} is a word among mathematics")
        else:
            result += [Token("letters", letter, token.spaced and i == 0) for i, letter in enumerate(token.text)]
    return result


def _is_unit(token: Token, found: list[Token]) -> bool:
    """Whether letters after `found` are a unit: known after any value, unknown after a number."""
    before = found[-1] if found else END
    if before.text == "/" and len(found) > 1:  # km/min
        before = found[-2] if found[-2].kind == "word" else END
    if before.kind in ("number", "word") and (token.text in ORDINALS or (token.spaced and len(token.text) > 2)):
        return True
    after_value = before.kind in ("number", "letters", "word") or before.text in (")", "}", "pi")
    return after_value and named(token.text) is not None


def _simplest(value: Value) -> Value:
    """x = 1 or x = 2 as x = (1, 2), and 3 ± 2 as two values."""
    if isinstance(value, Sequence) and value.brackets == "":
        solved = [item for item in value.items if isinstance(item, Relation) and item.operators == ("=",)]
        if len(solved) == len(value.items) and len({item.operands[0] for item in solved}) == 1:
            return Relation((solved[0].operands[0], Sequence("", tuple(item.operands[1] for item in solved))), ("=",))
    if isinstance(value, Relation):
        return value._replace(operands=tuple(map(_simplest, value.operands)))
    if isinstance(value, Quantity) and isinstance(value.expression, Op):
        plus, minus = (_with_sign(value.expression, sign) for sign in "+-")
        if plus != minus:
            return Sequence("±", (value._replace(expression=plus), value._replace(expression=minus)))
    return value


def _with_sign(expression: Expression, sign: str) -> Expression:
    if not isinstance(expression, Op):
        return expression
    name = sign if expression.name == "±" else expression.name
    return Op(name, tuple(_with_sign(argument, sign) for argument in expression.arguments))


class _Reader(Expressions):
    """Reads one list of tokens to its end with `value`."""

    def value(self) -> Value:
        """The whole text: one value, or several that commas, "and" or "or" separate."""
        items = self.items()
        if self.next is not END:
            raise Unreadable(f"{self.next.text} is not understood where it stands")
        return items[0] if len(items) == 1 else Sequence("", items)

    def items(self) -> tuple[Value, ...]:
        items = [self.relation()]
        while self.at(",", ";") or self._connects():
            if self.take().text == "," and self._connects():
                self.take()
            items.append(self.relation())
        if len(items) > MOST_ITEMS:
            raise Unreadable(f"it lists more than {MOST_ITEMS} values")
        return tuple(items)

    def _connects(self) -> bool:
        """Whether "and" or "or" is next, which only joins values outside brackets."""
        return self.depth == 0 and self.next[:2] in CONNECTORS

    def relation(self) -> Value:
        operands: list[Value] = [self.ratio()]
        operators: list[str] = []
        while self.at(*RELATIONS):
            sign = RELATIONS[self.take().text]
            operators.append(sign + "=" if sign in ("<", ">") and self.accept("=") else sign)
            operands.append(self.ratio())
        return Relation(tuple(operands), tuple(operators)) if operators else operands[0]

    def ratio(self) -> Value:
        parts = [self.union()]
        while self.accept(":"):
            parts.append(self.union())
        return Ratio(tuple(parts)) if len(parts) > 1 else parts[0]

    def union(self) -> Value:
        parts = [self.quantity()]
        while self.accept("cup"):
            parts.append(self.quantity())
        return Union(tuple(parts)) if len(parts) > 1 else parts[0]

    def quantity(self) -> Value:
        money = self.accept("$")
        value = self.sum()
        words = self.unit_words()
        if not (words or money):
            return value
        if not isinstance(value, Quantity) or (words and money):
            raise Unreadable("its unit is not understood")
        return Quantity(value.expression, unit_of(" ".join(words or ["dollar"])))

    def unit_words(self) -> list[str]:
        words: list[str] = []
        while (self.next.kind == "word" and self.next[:2] not in CONNECTORS) or (
            self.next.kind == "letters" and (words[-1:] == ["degree"] or self.is_unit_letter())
        ):
            words.append(self.take().text)
            if self.accept("^"):
                words += ["^", str(self.exponent())]
            if self.accept("/"):
                words.append("/")
        return words

    def bracketed(self) -> Value:
        """Values in brackets; one value in round ones or in TeX's braces is that value."""
        left = self.take().text
        items = () if left == r"\{" and self.at(r"\}") else self.items()
        right = self.expect(*{"{": "}", r"\{": r"\}"}.get(left, ") ]").split())
        if len(items) == 1 and left + right in ("()", "{}"):
            return items[0]
        return Sequence((left + right).replace("\\", ""), items)

    def matrix(self) -> Value:
        kind = self.take().text
        if kind not in MATRICES:
            raise Unreadable(f"the environment {kind} is not understood")
        rows: list[list[Value]] = [[self.quantity()]]
        while self.next.kind != "end":
            if self.expect("&", "\\") == "&":
                rows[-1].append(self.quantity())
            elif self.next.kind != "end":
                rows.append([self.quantity()])
        if self.take().text != kind or len({len(row) for row in rows}) > 1:
            raise Unreadable("the rows of its matrix differ in length")
        return Matrix(tuple(map(tuple, rows)))
