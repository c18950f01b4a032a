"""Rewards of responses, from a reward function that is built in or the user's own.

    with RewardPool("number") as pool:
        scored = pool.score([(text, example), ...], truncated=[False, ...])

Model output is untrusted. "exact" and "number" are string and integer work, done in place; "math" and every user's function
run in worker processes with a wall limit and a memory limit. A checker that fails (an exception, a NaN, a time-out, no
solution to compare with) gives an error that is counted, never the reward 0: that would train the model on the checker's faults.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from .reward_workers import Limits, RewardFunction, Scored, Workers, call_reward

if TYPE_CHECKING:
    from .data import Example

__all__ = ["RewardFunction", "RewardPool", "Scored", "final_answer", "parse_number"]

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
    """The exact value of "-1,234.50", "$7", "3/4" or "12."; None for anything else ("12%", "1e9", "1,2", "7 apples")."""
    match = _NUMBER.fullmatch(text.strip()) if len(text) <= _LONGEST_NUMBER else None
    if match is None:
        return None
    try:
        return Fraction(match[1].replace(",", ""))
    except ZeroDivisionError:
        return None


def exact_reward(data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None) -> float:
    """1 if the response is the solution, white space around both aside."""
    return float(solution_str.strip() == ground_truth.strip())


def number_reward(data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None) -> float:
    """1 if the final answer equals the solution as a number: exactly, without tolerance or percent."""
    expected = parse_number(final_answer(ground_truth) or ground_truth)
    if expected is None:
        raise ValueError(f"the solution {ground_truth[:80]!r} is not a number: use the reward 'math' or 'exact'")
    answer = final_answer(solution_str)
    return float(answer is not None and parse_number(answer) == expected)


IN_PLACE: dict[str, RewardFunction] = {"exact": exact_reward, "number": number_reward}
IN_WORKERS = {"math": "gft.math_reward:math_reward"}


class RewardPool:
    """Scores responses; a context manager, because it may own processes.

    Args:
        reward: "exact", "number", "math", "package.module:function", or a function that a fresh interpreter can import. The
            function is called as compute_score(data_source, solution_str, ground_truth, extra_info), where extra_info holds
            "prompt" and "truncated".
        workers: processes for "math" and for functions.
        seconds: wall limit of one call.
        memory_mib: what one call may allocate.

    Raises:
        ValueError: no such reward, or a worker cannot import it.
    """

    def __init__(self, reward: str | RewardFunction, *, workers: int = 2, seconds: float = 5.0, memory_mib: int = 1024) -> None:
        if workers < 1 or not seconds > 0 or memory_mib < 1:
            raise ValueError(f"workers = {workers}, seconds = {seconds} and memory_mib = {memory_mib} must all be positive.")
        if not isinstance(reward, str) and not callable(reward):
            raise TypeError(f"reward is {reward!r} ({type(reward).__name__}); give a name or a function.")
        if isinstance(reward, str) and not (reward in IN_PLACE or reward in IN_WORKERS or re.fullmatch(r"[\w.]+:\w+", reward)):
            names = ", ".join(map(repr, [*IN_PLACE, *IN_WORKERS]))
            raise ValueError(f"reward = {reward!r} is unknown: choose {names} or 'package.module:function'.")
        self.errors = 0
        self._built_in = isinstance(reward, str) and (reward in IN_PLACE or reward in IN_WORKERS)
        self._function = IN_PLACE.get(reward) if isinstance(reward, str) else None
        self._workers: Workers | None = None
        if self._function is None:
            target = IN_WORKERS.get(reward, reward) if isinstance(reward, str) else reward
            self._workers = Workers(target, workers, Limits(seconds, memory_mib))

    def score(self, items: Sequence[tuple[str, Example]], truncated: Sequence[bool]) -> list[Scored]:
        """Score each (response text, example), in order.

        A truncated response is scored as an empty one by the built-in rewards, whatever its text: it finished no answer. A user's
        function is told by extra_info["truncated"]. An example without a solution is an error.
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
        self.errors += sum(scored.value is None for scored in results.values())
        return [results[i] for i in range(len(items))]

    def _run(self, calls: list[tuple]) -> list[Scored]:
        if self._workers is not None:
            return self._workers.run(calls)
        return [call_reward(self._function, call) for call in calls]

    def close(self) -> None:
        """End the worker processes at once."""
        if self._workers is not None:
            self._workers.close()

    def __enter__(self) -> RewardPool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
