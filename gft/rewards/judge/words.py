"""Whether two texts in words are the same."""

from __future__ import annotations

import re
from fractions import Fraction

from .arithmetic import Doubt
from .values import Words

_NUMBER_WORDS = """one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
    seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million billion
    half third quarter dozen single double once twice thrice pair couple score first second fourth fifth sixth seventh
    eighth ninth tenth negative minus"""
ZERO_WORDS = frozenset({"zero", "no", "none", "nothing", "neither", "null", "nil", "empty", "never"})
NUMBER_WORDS = frozenset(_NUMBER_WORDS.split())
ALIKE = ({"yes", "true", "correct", "right"}, {"no", "false", "none", "never", "incorrect", "neither", "wrong"})
PREFIX = 3  # letters that Mon and Monday, or odd and oddly, have in common


def same_words(a: Words, b: Words) -> bool:
    """The same words, a capital at the beginning aside. Words without kinship are others."""
    one, other = _words(a), _words(b)
    if _lower(one) == _lower(other):
        if all(x[1:] == y[1:] and (len(x) > 1 or x == y) for x, y in zip(one, other, strict=True)):
            return True
        raise Doubt("they differ in their capital letters")
    kin = any(_kin(x, y) for x in _lower(one) for y in _lower(other))
    abbreviated = any(word.isupper() for word in one) != any(word.isupper() for word in other)
    if kin or abbreviated or (a.text[-1:].isdigit() and b.text[-1:].isdigit()):
        raise Doubt("the words may mean the same")
    return False


def may_be_number(words: Words, number: Fraction | None) -> bool:
    """Whether the words may stand for this number, which is None if it is no fraction."""
    found = _words(words)
    if number is None or any(not word.isalpha() or re.fullmatch("[IVXLCDM]+", word) for word in found):
        return True
    return not NUMBER_WORDS.isdisjoint(_lower(found)) or (number == 0 and not ZERO_WORDS.isdisjoint(_lower(found)))


def _words(words: Words) -> list[str]:
    return re.findall(r"[A-Za-z]+|-?[0-9][0-9.,/-]*", words.text)


def _lower(words: list[str]) -> list[str]:
    return [word.lower() for word in words]


def _kin(a: str, b: str) -> bool:
    numbers = NUMBER_WORDS | ZERO_WORDS
    return (
        a[:PREFIX] == b[:PREFIX]
        or any(a in group and b in group for group in ALIKE)
        or ({a, b} <= numbers and not {a, b}.isdisjoint({"dozen", "half", *ZERO_WORDS}))
    )
