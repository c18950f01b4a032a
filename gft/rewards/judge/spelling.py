r"""How mathematics is spelt: LaTeX, plain text and Unicode become one list of tokens.

Only what has one meaning is put aside: white space, \left and \right, \dfrac for \frac, the thin
space in 1\,234. A character that is not known here makes the text unreadable.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

UNIT_LETTERS = "mgshLlJNWKVA"
LONGEST = 1000  # characters of an answer that is read; it bounds every loop over the tokens


class Unreadable(ValueError):
    """Why a text is no answer that this package can read."""


class Token(NamedTuple):
    r"""kind: number, letters (bare), word (in \text), command (without its backslash), mark."""

    kind: str
    text: str
    spaced: bool = False  # white space before it: "11 5/6" is not "115/6"


_MINUS_SIGNS, _PRIMES = "\u2212\ufe63\uff0d", "\u2032\u2019"
_THIN_SPACES = "\u2009\u202f\u00a0\u2005\u2006"
_UNICODE = {
    **dict.fromkeys(_MINUS_SIGNS, "-"),
    **dict.fromkeys(_PRIMES, "'"),
    **dict.fromkeys(_THIN_SPACES, r"\,"),
    **{"\u00d7": r"\times ", "\u00b7": r"\cdot ", "\u22c5": r"\cdot ", "÷": r"\div ", "±": r"\pm ", "√": " sqrt "},
    **{"≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "∞": r"\infty ", "\u222a": r"\cup ", "∅": r"\emptyset ", "∈": r"\in "},
    **{"π": r"\pi ", "\u03b1": r"\alpha ", "β": r"\beta ", "θ": r"\theta ", "λ": r"\lambda ", "φ": r"\phi "},
    **{"½": r"\frac12", "¼": r"\frac14", "¾": r"\frac34", "⅓": r"\frac13", "⅔": r"\frac23", "°": r"^\circ "},
    **{"€": r"\text{ euro }", "£": r"\text{ pound sterling }"},
}
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_SYNONYMS = {
    **dict.fromkeys(("dfrac", "tfrac", "cfrac"), "frac"),
    **dict.fromkeys(("dbinom", "tbinom"), "binom"),
    **{"leq": "le", "leqslant": "le", "geq": "ge", "geqslant": "ge", "neq": "ne", "lt": "<", "gt": ">"},
    **{"lbrace": "{", "rbrace": "}", "varnothing": "emptyset", "infinity": "infty", "ast": "*", "colon": ":"},
    **dict.fromkeys(("vert", "lvert", "rvert"), "|"),
}
_NOTHING = {"left", "right", "bigl", "bigr", "Bigl", "Bigr", "big", "Big", "displaystyle", "textstyle"}
# Names that are also written without a backslash, "sqrt(2)". In \text they are the same.
PLAIN_NAMES = {"sqrt", "pi", "infty", "infinity", "sin", "cos", "tan", "ln", "log", "exp"}

# Separators of thousands. A comma alone may also separate the items of a list: see `read`.
_GROUPED = re.compile(r"(?<![0-9.,}])[0-9]{1,3}(?:(?:\{,\}|,\\!|\\,|\\!|~)[0-9]{3})+(?![0-9])")
COMMA_GROUPED = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9]|,[0-9])")
_REPEATING = re.compile(r"(?<![0-9.])([0-9]{0,9})\.([0-9]{0,50})\\overline\{\s*([0-9]{1,50})\s*\}(?![0-9])")
_DEGREE = re.compile(r"\^\s*(?:\\circ|\{\s*\\circ\s*\})(?![A-Za-z])|\\degree(?![A-Za-z])")
_TEXT = "text|textbf|textit|textrm|textnormal|mathrm|mathbf|mathit|mbox|operatorname"
_UPRIGHT_SYMBOL = rf"(?![{UNIT_LETTERS}])[a-zA-Z]"  # \mathbf{v} is a symbol, \mathrm{m} a unit
_TOKEN = re.compile(
    rf"""(?P<space>\s+|~|\\(?:[,;:>\ ]|(?:quad|qquad|thinspace)(?![A-Za-z])))
    |\\(?P<style>{_TEXT})\s*\{{(?P<inside>[^{{}}\\]*)\}}
    |\\(?P<end>begin|end)\{{(?P<environment>[a-z]+)\}}
    |\\(?P<command>[A-Za-z]+|[{{}}%$|\\!])
    |(?P<number>(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][-+]?[0-9]+(?![A-Za-z0-9.]))?)
    |(?P<letters>[A-Za-z]+)
    |(?P<mark>[-+*/^_=<>()\[\]{{}}|,;:!'&%])""",
    re.VERBOSE,
)


def bare(text: str) -> str:
    """The text without the dollar signs of LaTeX, the full stop of a sentence, and spare spaces."""
    text = re.sub(r"[ \t\r\n]+", " ", text).strip().removesuffix(".").strip()
    for left, right in (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")):
        inside = text[len(left) : -len(right)]
        if (
            len(text) >= len(left + right)
            and text.startswith(left)
            and text.endswith(right)
            and not re.search(r"(?<!\\)\$", inside)
        ):
            return inside.strip().removesuffix(".").strip()
    return text


def unicode_as_latex(text: str) -> str:
    r"""The text with × as \times, ² as ^{2}, ° as a word, and 1\,234 as 1234."""
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+", lambda raised: f"^{{{raised[0].translate(_RAISED)}}}", text)
    text = "".join(_UNICODE.get(character, character) for character in text)
    text = _GROUPED.sub(lambda group: re.sub("[^0-9]", "", group[0]), text)
    text = _REPEATING.sub(_repeating, text)
    text = re.sub(r"(?<!\\)\$", r"\\$", text)
    text = re.sub(r"^([-+])\s*\\\$", r"\\$\1", text)
    return _DEGREE.sub(r"\\text{ degree }", text)


def _repeating(match: re.Match) -> str:
    r"""0.1\overline{6} as a fraction: all digits less those before the bar, over 90."""
    before, bar = match[1] + match[2], match[3]
    below = 10 ** len(match[2]) * (10 ** len(bar) - 1)
    return rf"\frac{{{int(before + bar) - int(before or 0)}}}{{{below}}}"


def tokens(text: str) -> list[Token]:
    """The tokens of `unicode_as_latex(text)`.

    Raises:
        Unreadable: it holds a character that is not known.
    """
    if len(text) > LONGEST:
        raise Unreadable(f"it has {len(text)} characters, more than {LONGEST}")
    return list(_tokens(text, in_text=False))


def _tokens(text: str, in_text: bool) -> Iterator[Token]:
    position, spaced = 0, False
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise Unreadable(f"{text[position]!r} at character {position + 1} is not understood")
        position = match.end()
        for token in _meaning(match, spaced, in_text):
            yield token
            spaced = False
        spaced = match.lastgroup == "space" or (spaced and match["command"] in (*_NOTHING, "!"))


def _meaning(match: re.Match, spaced: bool, in_text: bool) -> Iterator[Token]:
    """The tokens that one match stands for: none for white space, several for \\text{3 cm}."""
    if match["style"]:
        inside = list(_tokens(match["inside"], in_text=True))
        symbol = match["style"].startswith("math") and re.fullmatch(_UPRIGHT_SYMBOL, match["inside"])
        kinds = [token._replace(kind="letters") if symbol else token for token in inside]
        yield from (token._replace(spaced=token.spaced or (spaced and i == 0)) for i, token in enumerate(kinds))
    elif match["end"]:
        yield Token(match["end"], match["environment"], spaced)
    elif match["command"]:
        name = _SYNONYMS.get(match["command"], match["command"])
        if name == "%":
            yield Token("word", "percent", spaced)
        elif name in ("{", "}"):  # a brace that is printed; a bare one only groups
            yield Token("mark", f"\\{name}", spaced)
        elif name in ("<", ">", "*", "|", ":"):
            yield Token("mark", name, spaced)
        elif name not in _NOTHING and name != "!":
            yield Token("command", name, spaced)
    elif match["letters"]:
        name = match["letters"]
        if name in PLAIN_NAMES:
            yield Token("command", "plain sqrt" if name == "sqrt" else _SYNONYMS.get(name, name), spaced)
        else:
            yield Token("word" if in_text or name in ("and", "or") else "letters", name, spaced)
    elif match["mark"] == "%":
        yield Token("word", "percent", spaced)
    elif match["number"] or match["mark"]:
        yield Token("number" if match["number"] else "mark", match["number"] or match["mark"], spaced)
