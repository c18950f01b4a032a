"""Which solutions a built-in reward cannot read: no response to them could be scored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .pool import RewardPool
from .terms import parse_terms

if TYPE_CHECKING:
    from ..data.files import Example

# Rewards of an empty response, which fail where the solution cannot be read. `exact` reads every
# one.
PROBES = {"number": "number", "math": "gft.rewards.math:check_math"}


def unreadable_solutions(reward: str, examples: Sequence[Example]) -> list[str]:
    """The solutions that a reward cannot read: "file:line: why".

    Of a sum its built-in terms are asked. What a user's function makes of a solution is not known
    before it has a response.

    Raises:
        ValueError: it is no sum of rewards.
    """
    found: dict[str, str] = {}
    solved = [e for e in examples if e.solution.strip()]
    for probe in (PROBES[term.name] for term in parse_terms(reward) if term.name in PROBES):
        with RewardPool(probe) as pool:
            scored = pool.score([("", e) for e in solved], [False] * len(solved))
        for example, one in zip(solved, scored, strict=True):
            if one.error is not None:
                found.setdefault(example.origin, one.error)
    return [f"{origin}: {why}" for origin, why in found.items()]
