"""Rewards on pairs whose truth needs no judgement: certain, or counted as a failure."""

from __future__ import annotations

import time

import pytest

from gft.rewards.calls import call_reward
from gft.rewards.math import math_reward, number_reward

from .pairs import NUMBER, math_pairs


@pytest.mark.parametrize(("solution", "answer", "reward"), math_pairs())
def test_math_reward_is_certain_or_a_failure(solution, answer, reward):
    started = time.monotonic()
    scored = call_reward(math_reward, ("", rf"So it is \boxed{{{answer}}}.", solution))
    assert scored.value == reward, scored.error
    assert (scored.error is None) == (reward is not None)
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(("solution", "response", "reward"), NUMBER)
def test_number_reward_is_certain_or_a_failure(solution, response, reward):
    scored = call_reward(number_reward, ("", response, solution))
    assert scored.value == reward, scored.error
    assert (scored.error is None) == (reward is not None)
