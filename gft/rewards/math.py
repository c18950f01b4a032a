"""The reward "math": the final answer equals the solution as mathematics, judged by math-verify.

It runs in a worker process (gft.rewards.workers), because some answers make it hang or eat memory.
The time-outs of math-verify are off: they use SIGALRM, which the worker needs for itself.
"""

from __future__ import annotations

import logging
from typing import Any

from math_verify import LatexExtractionConfig, parse, verify

from ..answers import final_answer, parse_number

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its time-outs are off


def math_reward(data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None) -> float:
    """1 if the final answer equals the solution.

    Two plain numbers are compared exactly. The rest is left to math-verify. It rounds floats to 6
    places and ignores units. Where one side has a percent sign, 50, 0.5 and 50% are equal to it.
    """
    answer = final_answer(solution_str)
    if answer is None:
        return 0.0
    answer, expected = _bare(answer), _bare(final_answer(ground_truth) or ground_truth)
    if answer and answer == expected:
        return 1.0
    numbers = parse_number(answer), parse_number(expected)
    if None not in numbers:
        return float(numbers[0] == numbers[1])
    gold = _expressions(expected)
    if not gold:
        raise ValueError(f"math-verify cannot read the solution {ground_truth[:80]!r}")
    return float(verify(gold, _expressions(answer), timeout_seconds=None, raise_on_error=True))


def _bare(answer: str) -> str:
    """Without the dollar signs of LaTeX and the full stop of a sentence."""
    return answer.strip().strip("$").strip().removesuffix(".")


def _expressions(latex: str) -> list[Any]:
    """Sympy expressions, none if the text is no mathematics."""
    target = [LatexExtractionConfig()]
    return parse(rf"\boxed{{{latex}}}", extraction_config=target, fallback_mode="no_fallback", parsing_timeout=None)


_expressions("1")  # the first call builds math-verify's tables; it belongs to loading, not to somebody's time limit
