"""What --reward names: one reward, or a weighted sum of several.

    math                                     one
    math + 0.1*my.module:brevity             a sum; a name alone has the weight 1
    math - 0.5*my.module:repeats             a term that is taken off

Weights are numbers, finite and not 0.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from .built_in import BUILT_IN

_TERM = re.compile(r"\s*(?P<sign>[+-]?)\s*(?:(?P<weight>[0-9.]+(?:[eE][+-]?[0-9]+)?|\w+)\s*\*\s*)?(?P<name>[\w.:]+)\s*")


class Term(NamedTuple):
    """A reward, and what it counts in the sum."""

    name: str
    weight: float = 1.0


def parse_terms(reward: str) -> list[Term]:
    """The terms of a sum, in its order.

    Raises:
        ValueError: it is no sum of rewards.
    """
    terms: list[Term] = []
    place = 0
    while place < len(reward) or not terms:
        match = _TERM.match(reward, place)
        if match is None or (terms and not match["sign"]):
            raise ValueError(
                f"reward = {reward!r} cannot be read from {reward[place:]!r} on: write 'math', or a sum such as "
                "'math + 0.1*package.module:function'."
            )
        terms.append(_term(match))
        place = match.end()
    names = [term.name for term in terms]
    if double := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"reward = {reward!r} has {double!r} twice: give it one weight.")
    return terms


def _term(match: re.Match[str]) -> Term:
    name, written = match["name"], match["weight"] or "1"
    if name not in BUILT_IN and not re.fullmatch(r"[\w.]+:\w+", name):
        names = ", ".join(map(repr, BUILT_IN))
        raise ValueError(f"reward = {name!r} is unknown: choose {names} or 'package.module:function'.")
    try:
        weight = float(written)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight) or weight == 0:
        raise ValueError(f"the weight of {name!r} is {written!r}: give a number in front that is finite and not 0.")
    return Term(name, -weight if match["sign"] == "-" else weight)
