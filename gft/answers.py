"""The answer in a text: where it is marked, and its value as a number.

What the data accept as an answer and what the rewards read as one are the same functions.
"""

from __future__ import annotations

import re
from fractions import Fraction

MARKER = "####"  # GSM8K's: the answer stands behind it on the last line
_BOXED = r"\boxed{"  # LaTeX's
_DECIMAL = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
_NUMBER = re.compile(rf"(?:\\?\$)?\s*([-+]?(?:[0-9]+/[0-9]+|{_DECIMAL}))\.?")
_END = re.compile(r"(?:</s>|<eos>|<end_of_turn>|<\|[a-z_]+\|>)\Z")  # the end of a text or a turn, as models spell it
_LONGEST_NUMBER = 200  # characters: a longer one is no answer, and would take quadratic time to read


def final_answer(text: str) -> str | None:
    r"""What follows `####` on the last line, else the content of the last \boxed{}, else None.

    An answer must be marked as one: the last number of a text that goes on is not an answer.
    """
    stated = _after_marker(text)
    if stated is None:
        return _last_boxed(text)
    return _last_boxed(stated) or stated


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


def _last_boxed(text: str) -> str | None:
    r"""The content of the last \boxed{}; None if there is none, or if its brace is not closed."""
    start = text.rfind(_BOXED)
    if start < 0:
        return None
    start += len(_BOXED)
    depth = 1
    for brace in re.finditer(r"\\.|[{}]", text[start:], re.DOTALL):  # an escaped brace is a character, not a bracket
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return text[start : start + brace.start()].strip()
    return None
