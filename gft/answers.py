"""The answer in a text: where it is marked, and its value as a number.

What the data accept as an answer and what the rewards read as one are the same functions.
"""

from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction
from numbers import Real
from typing import Any

MARKER = "####"  # GSM8K's: the answer stands behind it on the last line
_BRACE = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)  # \boxed{, an escaped character, or a brace
_DECIMAL = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
_NUMBER = re.compile(rf"(?:\\?\$)?\s*([-+]?(?:[0-9]+/[0-9]+|{_DECIMAL}))\.?")
_END = re.compile(r"(?:</s>|<eos>|<end_of_turn>|<\|[a-z_]+\|>)\Z")  # the end of a text or a turn, as models spell it
_LONGEST_NUMBER = 200  # characters: a longer one is no answer, and would take quadratic time to read


def final_answers(text: str) -> tuple[str, ...]:
    r"""What a text gives as its answer: what follows `####` on the last line, else every \boxed{}.

    An answer must be marked as one: the last number of a text that goes on is not an answer. None
    is given if the last box is not closed. Boxes that say the same count once.
    """
    stated = _after_marker(text)
    if stated is None:
        return _boxes(text)
    return _boxes(stated) or (stated,)


def last_box(text: str) -> str | None:
    r"""The content of the last \boxed{} of a worked solution; None if there is none, or no end.

    What stands in earlier boxes are the steps on the way.
    """
    found = _boxes(text, distinct=False)
    return found[-1] if found else None


def marked_number(text: str) -> str | None:
    """The number after `####` on the last line, without commas: "#### 1,024" gives "1024".

    None if there is no such line, or if something else than a number follows.
    """
    stated = _after_marker(text)
    if stated is None or parse_number(stated) is None:
        return None
    return stated.replace(",", "")


def parse_number(text: str) -> Fraction | None:
    """The exact value of "-1,234.50", "$7", "3/4" or "12."; None for anything else.

    "12%", "1e9", "1,2" and "7 apples" are refused: what they are worth would be a guess.
    """
    match = _NUMBER.fullmatch(text.strip()) if len(text) <= _LONGEST_NUMBER else None
    if match is None:
        return None
    try:
        return Fraction(match[1].replace(",", ""))
    except ZeroDivisionError:
        return None


def is_number(value: Any) -> bool:
    """Whether a stored value is a number: an int, a float, a Decimal or numpy's, and no bool."""
    return isinstance(value, (Real, Decimal)) and not isinstance(value, bool)


def is_missing(value: Any) -> bool:
    """Whether it is the text "nan", which a table or `number_text` made of a missing value.

    As a solution no answer would equal it, and every reward would be 0.
    """
    return isinstance(value, str) and value.strip().lower() == "nan"


def number_text(value: Any) -> str:
    """A stored number as people write it: 42.0 is "42", 1e-05 is "0.00001".

    Raises:
        ValueError: it is infinite, or longer than any number that is read.
    """
    number = Decimal(value) if isinstance(value, int) else Decimal(str(value))  # numpy's 0.1 of 32 bits is "0.1"
    if number.is_nan():
        return "nan"
    if number.is_infinite():
        raise ValueError(f"{value}, which no answer equals")
    if abs(number.adjusted()) >= _LONGEST_NUMBER:
        raise ValueError(f"a number of more than {_LONGEST_NUMBER} digits, and such numbers are not read")
    text = f"{number:f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return text.removeprefix("-") if number == 0 else text


def without_calculator(text: str) -> str:
    """GSM8K's text without its calculator annotations: "48/2 = <<48/2=24>>24" is "48/2 = 24"."""
    return re.sub(r"<<[^<>]*>>", "", text)


def _after_marker(text: str) -> str | None:
    """What follows `####` at the start of the last line that is not empty.

    An end token that is spelled out behind the answer is no part of it. Where a tokenizer is at
    hand, its own are taken away before a text is scored; many data files have those of others.
    """
    while end := _END.search(text := text.rstrip(), max(0, len(text) - 40)):
        text = text[: end.start()]
    line = text.rstrip().rpartition("\n")[2].strip()
    return line.removeprefix(MARKER).strip() if line.startswith(MARKER) else None


def _boxes(text: str, *, distinct: bool = True) -> tuple[str, ...]:
    r"""The contents of all \boxed{}, of one in another only the inner; none if the last is open."""
    found: list[str] = []
    opened: list[tuple[int, int] | None] = []  # of every open brace that is a box: its place, and what was found before
    last = None
    for brace in _BRACE.finditer(text):
        if brace[0].endswith("{") and len(brace[0]) > 2:
            last = (brace.end(), len(found))
            opened.append(last)
        elif brace[0] == "{":
            opened.append(None)
        elif brace[0] == "}" and opened:
            box = opened.pop()
            if box is not None and box[1] == len(found):
                found.append(text[box[0] : brace.start()].strip())
    if last in opened and last is not None:
        return ()
    return tuple(dict.fromkeys(found) if distinct else found)
