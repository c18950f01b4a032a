r"""The rewards "math" and "number": the final answer equals the solution, beyond judgement.

A policy collects every gap of its reward. So an answer is right or wrong only where no reader would
disagree (gft.rewards.judge). Everything else raises Doubt, which is counted as a failure.
"""

from __future__ import annotations

from typing import Any

from ..answers import final_answers, parse_number
from .judge.verdict import Doubt, check_solution, is_right

MOST_ANSWERS = 5  # different boxes that are judged


def math_reward(data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None) -> float:
    """1 if the final answer equals the solution as mathematics, 0 if it does not.

    Raises:
        Doubt: neither is certain.
    """
    return _reward(solution_str, _solution(ground_truth))


def number_reward(data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None) -> float:
    """1 if the final answer is the same number as the solution, without any tolerance.

    Raises:
        Doubt: neither that nor the contrary is certain.
        ValueError: the solution is not a plain number.
    """
    solution = _solution(ground_truth)
    if parse_number(solution) is None:
        raise ValueError(f"the solution {ground_truth[:80]!r} is not a number: use the reward 'math' or 'exact'")
    return _reward(solution_str, solution)


def check_math(data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None) -> float:
    """1 if answers can be compared with the solution, whatever the response.

    Raises:
        Doubt: they cannot.
    """
    solution = _solution(ground_truth)
    if parse_number(solution) is None:
        check_solution(solution)
    return 1.0


def _solution(ground_truth: str) -> str:
    """The one answer that a solution marks, or all of it where none is marked."""
    answers = final_answers(ground_truth)
    if len(answers) > 1:
        raise Doubt(f"the solution marks different answers: {', '.join(map(repr, answers))[:200]}")
    solution = answers[0] if answers else ground_truth
    if not solution.strip().strip("$"):
        raise Doubt(f"the solution {ground_truth[:80]!r} is empty")
    return solution


def _reward(response: str, solution: str) -> float:
    """Of several boxes any may be meant: they are right or wrong together, or in doubt."""
    answers = final_answers(response)
    verdicts = {_equals(answer, solution) for answer in answers[:MOST_ANSWERS]}
    if len(verdicts) > 1 or len(answers) > MOST_ANSWERS:
        raise Doubt(f"the response marks different answers: {', '.join(map(repr, answers))[:200]}")
    return float(answers != () and verdicts.pop())


def _equals(answer: str, solution: str) -> bool:
    # $5 may be meant for 500 cents: that is not settled here.
    expected, number = parse_number(solution), parse_number(answer)
    if expected is not None and number is not None and (number == expected or "$" not in answer + solution):
        return number == expected
    try:
        return is_right(answer, solution)
    except Doubt as doubt:
        raise Doubt(f"whether {answer[:80]!r} equals {solution[:80]!r} is in doubt: {doubt}") from doubt
