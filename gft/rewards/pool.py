"""Rewards of responses, from a reward function that is built in or the user's own.

    with RewardPool("number") as pool:
        scored = pool.score([(text, example), ...], truncated=[False, ...])

Model output is untrusted. "exact" and "number" only compare text and numbers, and are called in
this process. "math" and users' functions run in worker processes, with limits of time and memory.

A checker fails if it raises, returns no finite number, takes too long, has no solution to compare
with, or cannot tell right from wrong. A failure is counted as an error. It is never the reward 0,
which would train the policy on the checker's faults.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .calls import RewardFunction, Scored, call_reward
from .math import number_reward
from .workers import Limits, Workers

if TYPE_CHECKING:
    from ..data.files import Example

__all__ = ["RewardFunction", "RewardPool", "Scored"]


def exact_reward(data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None) -> float:
    """1 if the response is the solution, white space around both aside."""
    return float(solution_str.strip() == ground_truth.strip())


IN_PLACE: dict[str, RewardFunction] = {"exact": exact_reward, "number": number_reward}
REASONS_TOLD = 3
IN_WORKERS = {"math": "gft.rewards.math:math_reward"}


class RewardPool:
    """Scores responses. It is a context manager, because it may own processes.

    Args:
        reward: "exact", "number", "math", "package.module:function", or a function that a fresh
            interpreter can import. The function is called as verl's are: compute_score(data_source,
            solution_str, ground_truth, extra_info). extra_info holds "prompt" and "truncated".
        workers: processes for "math" and for functions.
        seconds: wall limit of one call.
        memory_mib: what one call may allocate.

    Raises:
        ValueError: no such reward, or a worker cannot import it.
    """

    def __init__(
        self, reward: str | RewardFunction, *, workers: int = 2, seconds: float = 5.0, memory_mib: int = 1024
    ) -> None:
        if workers < 1 or not seconds > 0 or memory_mib < 1:
            raise ValueError(
                f"workers = {workers}, seconds = {seconds} and memory_mib = {memory_mib} must all be positive."
            )
        if not isinstance(reward, str) and not callable(reward):
            raise TypeError(f"reward is {reward!r} ({type(reward).__name__}); give a name or a function.")
        if isinstance(reward, str) and not (
            reward in IN_PLACE or reward in IN_WORKERS or re.fullmatch(r"[\w.]+:\w+", reward)
        ):
            names = ", ".join(map(repr, [*IN_PLACE, *IN_WORKERS]))
            raise ValueError(f"reward = {reward!r} is unknown: choose {names} or 'package.module:function'.")
        self.calls = self.errors = 0
        self.first_error = ""
        self.untold: list[str] = []  # the first few reasons, for whoever tells them
        self._built_in = isinstance(reward, str) and (reward in IN_PLACE or reward in IN_WORKERS)
        self._function = IN_PLACE.get(reward) if isinstance(reward, str) else None
        self._workers: Workers | None = None
        if self._function is None:
            target = IN_WORKERS.get(reward, reward) if isinstance(reward, str) else reward
            self._workers = Workers(target, workers, Limits(seconds, memory_mib))

    def score(self, items: Sequence[tuple[str, Example]], truncated: Sequence[bool]) -> list[Scored]:
        """Score each (response text, example), in order.

        The built-in rewards score a truncated response as an empty one, because it did not finish
        its answer. A user's function is told by extra_info["truncated"]. An example without a
        solution is an error.
        """
        if len(items) != len(truncated):
            raise ValueError(f"{len(items)} items with {len(truncated)} truncation flags: give one flag per item.")
        results: dict[int, Scored] = {}
        calls: dict[int, tuple] = {}
        for i, ((text, example), cut) in enumerate(zip(items, truncated, strict=True)):
            if not example.solution.strip():
                results[i] = Scored(None, f"{example.origin or 'example'}: there is no solution to compare with")
            else:
                text = "" if cut and self._built_in else text
                extra_info = {"prompt": example.prompt, "truncated": bool(cut)}
                calls[i] = (example.data_source, text, example.solution, extra_info)
        results.update(zip(calls, self._run(list(calls.values())), strict=True))
        self._count(list(results.values()))
        return [results[i] for i in range(len(items))]

    def _count(self, results: Sequence[Scored]) -> None:
        reasons = [scored.error for scored in results if scored.error is not None]
        self.untold += reasons[: max(0, REASONS_TOLD - self.errors)]
        self.first_error = self.first_error or (reasons[0] if reasons else "")
        self.calls += len(results)
        self.errors += len(reasons)

    def _run(self, calls: list[tuple]) -> list[Scored]:
        if self._function is not None:
            return [call_reward(self._function, call) for call in calls]
        assert self._workers is not None  # one of the two is set
        return self._workers.run(calls)

    def close(self) -> None:
        """End the worker processes at once."""
        if self._workers is not None:
            self._workers.close()

    def __enter__(self) -> RewardPool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
