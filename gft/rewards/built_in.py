"""The rewards that have a name of their own."""

from __future__ import annotations

from typing import Any

from .calls import RewardFunction
from .math import number_reward


def exact_reward(data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None) -> float:
    """1 if the response is the solution, white space around both aside."""
    return float(solution_str.strip() == ground_truth.strip())


# String work alone is called in the trainer's process, anything that may hang in workers.
IN_PLACE: dict[str, RewardFunction] = {"exact": exact_reward, "number": number_reward}
IN_WORKERS = {"math": "gft.rewards.math:math_reward"}
BUILT_IN = (*IN_PLACE, *IN_WORKERS)
