"""The final answer of a text, and its value as a number."""

from __future__ import annotations

import re
from fractions import Fraction

_DECIMAL = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
_NUMBER = re.compile(rf"(?:\\?\$)?\s*([-+]?(?:[0-9]+/[0-9]+|{_DECIMAL}))\.?")
_LONGEST_NUMBER = 200  # characters; longer ones are no answer, and cost quadratic time


def final_answer(text: str) -> str | None:
    r"""What follows `####` on the last non-empty line, else the content of the last \boxed{}; None if neither is there.

    An answer must be marked as one: the last number of a text that goes on is not an answer.
    """
    line = text.rstrip().rpartition("\n")[2].strip()
    if line.startswith("####"):
        stated = line[4:].strip()
        return _last_boxed(stated) or stated
    return _last_boxed(text)


def _last_boxed(text: str) -> str | None:
    start = text.rfind(r"\boxed{")
    if start < 0:
        return None
    start += len(r"\boxed{")
    depth = 1
    for brace in re.finditer(r"\\.|[{}]", text[start:], re.DOTALL):  # an escaped brace is a character, not a bracket
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return text[start : start + brace.start()].strip()
    return None


def parse_number(text: str) -> Fraction | None:
    """The exact value of "-1,234.50", "$7", "3/4" or "12."; None for anything else ("12%", "1e9",
    "1,2", "7 apples").
    """
    match = _NUMBER.fullmatch(text.strip()) if len(text) <= _LONGEST_NUMBER else None
    if match is None:
        return None
    try:
        return Fraction(match[1].replace(",", ""))
    except ZeroDivisionError:
        return None
