"""Rewards of responses, from a reward function that is built in or the user's own, or from a sum.

    with RewardPool("number") as pool:
        scored = pool.score([(text, example), ...], truncated=[False, ...])

Model output is untrusted. "exact" and "number" only compare text and numbers, and are called in
this process. "math" and users' functions run in worker processes, with limits of time and memory.

A checker fails if it raises, returns no finite number, takes too long, has no solution to compare
with, or cannot tell right from wrong. A failure is counted as an error. It is never the reward 0,
which would train the policy on the checker's faults. Nor is a sum without its failed term a reward:
the response would be compared with others on another scale.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .built_in import BUILT_IN, IN_PLACE, IN_WORKERS
from .calls import RewardFunction, Scored, call_reward
from .terms import Term, parse_terms
from .workers import Limits, Workers

if TYPE_CHECKING:
    from ..data.files import Example

__all__ = ["RewardFunction", "RewardPool", "Scored", "runs_in_workers"]

Items = Sequence[tuple[str, "Example"]]
REASONS_TOLD = 3


def runs_in_workers(reward: str) -> bool:
    """Whether any term of it is called in worker processes.

    Raises:
        ValueError: it is no sum of rewards.
    """
    return any(term.name not in IN_PLACE for term in parse_terms(reward))


def usable_cores() -> int:
    """Cores that this process may use, which may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class RewardPool:
    """Scores responses. It is a context manager, because it may own processes.

    Args:
        reward: "exact", "number", "math", "package.module:function", a sum of them such as
            "math + 0.1*package.module:function", or a function that a fresh interpreter can import.
            A function has verl's signature or TRL's: see `signatures`. extra_info holds "prompt"
            and "truncated".
        workers: processes for "math", and for every function; None is one a core.
        seconds: wall limit of one call.
        memory_mib: what one call may allocate.

    Raises:
        ValueError: no such reward, or a worker cannot import it.
    """

    def __init__(
        self,
        reward: str | RewardFunction,
        *,
        workers: int | None = None,
        seconds: float = 5.0,
        memory_mib: int = 1024,
    ) -> None:
        workers = usable_cores() if workers is None else workers
        if workers < 1 or not seconds > 0 or memory_mib < 1:
            raise ValueError(
                f"workers = {workers}, seconds = {seconds} and memory_mib = {memory_mib} must all be positive."
            )
        if not isinstance(reward, str) and not callable(reward):
            raise TypeError(f"reward is {reward!r} ({type(reward).__name__}); give a name or a function.")
        self.calls = self.errors = 0
        self.first_error = ""
        self.untold: list[str] = []  # the first few reasons, for whoever tells them
        terms = parse_terms(reward) if isinstance(reward, str) else [Term(getattr(reward, "__qualname__", "reward"))]
        self._scorers: list[tuple[Term, _Scorer]] = []
        try:
            for term in terms:
                target = term.name if isinstance(reward, str) else reward
                self._scorers.append((term, _Scorer(target, workers, Limits(seconds, memory_mib))))
        except BaseException:
            self.close()
            raise

    def score(self, items: Items, truncated: Sequence[bool]) -> list[Scored]:
        """Score each (response text, example), in order.

        The built-in rewards score a truncated response as an empty one, because it did not finish
        its answer. A user's function of verl's kind is told by extra_info["truncated"]. An example
        without a solution is an error.
        """
        if len(items) != len(truncated):
            raise ValueError(f"{len(items)} items with {len(truncated)} truncation flags: give one flag per item.")
        terms = [term for term, _ in self._scorers]
        columns = [scorer.score(items, truncated) for _, scorer in self._scorers]
        results = [_sum(terms, row) for row in zip(*columns, strict=True)]
        reasons = [scored.error for scored in results if scored.error is not None]
        self.untold += reasons[: max(0, REASONS_TOLD - self.errors)]
        self.first_error = self.first_error or (reasons[0] if reasons else "")
        self.calls += len(results)
        self.errors += len(reasons)
        return results

    def close(self) -> None:
        """End the worker processes at once."""
        for _, scorer in self._scorers:
            scorer.close()

    def __enter__(self) -> RewardPool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _sum(terms: Sequence[Term], scored: Sequence[Scored]) -> Scored:
    """The weighted sum of a response's rewards, without those that do not apply to it."""
    several = len(terms) > 1
    for term, one in zip(terms, scored, strict=True):
        if one.error is not None:
            return Scored(None, f"{term.name}: {one.error}" if several else one.error)
    parts = {term.name: one.value for term, one in zip(terms, scored, strict=True) if one.value is not None}
    if not parts:
        return Scored(None, "no reward applies to the response: None was returned")
    total = sum(term.weight * parts[term.name] for term in terms if term.name in parts)
    if not math.isfinite(total):
        return Scored(None, f"the sum of {parts} with its weights is {total}, not a finite number")
    return Scored(total, None, parts if several else {})


class _Scorer:
    """One reward: a function that is called here, or workers that have it."""

    def __init__(self, reward: str | RewardFunction, workers: int, limits: Limits) -> None:
        self.built_in = reward in BUILT_IN
        self.function = IN_PLACE.get(reward) if isinstance(reward, str) else None
        self.workers: Workers | None = None
        if self.function is None:
            target = IN_WORKERS.get(reward, reward) if isinstance(reward, str) else reward
            self.workers = Workers(target, workers, limits)

    def score(self, items: Items, truncated: Sequence[bool]) -> list[Scored]:
        results: dict[int, Scored] = {}
        calls: dict[int, tuple] = {}
        for i, ((text, example), cut) in enumerate(zip(items, truncated, strict=True)):
            if not example.solution.strip():
                results[i] = Scored(None, f"{example.origin or 'example'}: there is no solution to compare with")
            else:
                text = "" if cut and self.built_in else text
                extra_info = {"prompt": example.prompt, "truncated": bool(cut)}
                calls[i] = (example.data_source, text, example.solution, extra_info)
        results.update(zip(calls, self._run(list(calls.values())), strict=True))
        return [results[i] for i in range(len(items))]

    def _run(self, calls: list[tuple]) -> list[Scored]:
        if self.function is not None:
            return [call_reward(self.function, call) for call in calls]
        assert self.workers is not None  # one of the two is set
        return self.workers.run(calls)

    def close(self) -> None:
        if self.workers is not None:
            self.workers.close()
