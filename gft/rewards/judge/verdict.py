"""The verdict on an answer: right or wrong beyond judgement, or in doubt."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable

from .arithmetic import Doubt
from .equality import Comparison
from .reader import DECIMAL_COMMA, LETTERS_ALONE, PRODUCT, read, unstyled
from .spelling import COMMA_GROUPED, LONGEST, Unreadable, bare, unicode_as_latex
from .values import Quantity, Value


def _search(pattern: str) -> Callable[[str], object]:
    return re.compile(pattern).search


def _lists_thousands(text: str) -> bool:
    """Whether commas that set thousands apart stand beside brackets or other commas."""
    rest = COMMA_GROUPED.sub("", text)
    return rest != text and re.search(r"[,(\[]|\\\{", rest) is not None


# Spellings with two meanings: what gives them away, and the name of the second one. Both texts are
# read in the same way, so "e^x" is "e^{x}" whatever e is, and only what depends on it is in doubt.
AMBIGUOUS: dict[str, Callable[[str], object]] = {
    "constants": _search(r"(?<![A-Za-z\\])[ei](?![A-Za-z])|\\mathrm\{[ei]\}|[0-9a-z)}][ei]\b"),  # or symbols
    "application": _search(
        r"(?:(?<![A-Za-z\\])[fghFGHPQpq](?:_\w|_\{\w*\})?|'|prime\}?)\s*(?:\\left)?\s*\((?!\w\)\s*=)"
    ),  # or a product
    "common logarithm": _search(r"\\?log(?!_|\s*_)"),  # or the natural one
    "unit letter": _search(r"[0-9]\s*[mgshLlJNWKVA]$"),  # or a symbol
    "clock": _search(r"^[0-9]{1,2}:[0-5][0-9](?::[0-5][0-9])?$"),  # or a ratio
    "range": _search(r"^[0-9]+\s*-\s*[0-9]+$"),  # or a difference
    "commas": _lists_thousands,  # of a list, or of thousands
    "decimal comma": DECIMAL_COMMA.fullmatch,  # or a list
    "product": PRODUCT.fullmatch,  # or a word
}


def is_right(answer: str, solution: str) -> bool:
    """Whether the answer equals the solution in every way in which both can be read.

    Raises:
        Doubt: it depends on the reading, one of them cannot be read, or no judgement is certain.
    """
    answer, solution = bare(answer), bare(solution)
    if not solution:
        raise Doubt("the solution is empty")
    if answer == solution or not answer:
        return answer == solution
    if max(len(answer), len(solution)) > LONGEST:
        raise Doubt(f"it is longer than {LONGEST} characters")
    try:
        return _agreed(unicode_as_latex(answer), unicode_as_latex(solution))
    except RecursionError as error:
        raise Doubt("it has too many parts") from error


def check_solution(solution: str) -> None:
    """Refuse a solution that answers could only be spelled like, and not be compared with.

    Raises:
        Doubt: one of the ways to read it is none.
    """
    text = unicode_as_latex(bare(solution))
    if len(text) > LONGEST:
        raise Doubt(f"it is longer than {LONGEST} characters")
    for flips in _readings((text, text)):
        _read(text, "solution", flips)


def _agreed(answer: str, solution: str) -> bool:
    """The verdict that all readings agree on."""
    texts = answer, solution
    digits = max((len(run) for text in texts for run in re.findall(r"[0-9.]+", text)), default=0)
    verdicts = set()
    for flips in _readings(texts):
        verdicts.add(Comparison(flips, digits).same(_read(answer, "answer", flips), _read(solution, "solution", flips)))
        if len(verdicts) > 1:
            raise Doubt("it can be read in two ways")
    return verdicts.pop()


def _readings(texts: tuple[str, str]) -> list[frozenset[str]]:
    """The usual reading, each ambiguity read the second way, and all of them."""
    found = {name for name, gives_away in AMBIGUOUS.items() if any(map(gives_away, texts))}
    certain = set()
    if "unit letter" in found and all(map(_has_unit, texts)):  # 5 m beside 5 cm
        certain.add("unit letter")
    if "decimal comma" in found and all("," in text for text in texts):  # 2,3 beside 2, 3
        found.remove("decimal comma")
    if "product" in found and not all(map(PRODUCT.fullmatch, texts)):
        if any(LETTERS_ALONE.fullmatch(unstyled(text)) and not PRODUCT.fullmatch(text) for text in texts):
            found.remove("product")  # no beside No
        else:
            certain.add("product")  # xy beside 2xy
    doubtful = sorted(found - certain)
    readings = [certain, *(certain | {name} for name in doubtful), certain | found]
    return list(dict.fromkeys(map(frozenset, readings)))


def _has_unit(text: str) -> bool:
    with contextlib.suppress(Unreadable):
        value = read(text, frozenset(["unit letter"]))
        return isinstance(value, Quantity) and value.unit is not None
    return False


def _read(text: str, what: str, flips: frozenset[str]) -> Value:
    try:
        return read(text, flips)
    except Unreadable as error:
        raise Doubt(f"the {what} cannot be read: {error}") from error
