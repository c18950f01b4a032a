"""The reward "math": mathematics is compared, and what nobody can judge is a failure."""

from __future__ import annotations

import time

import pytest

from gft.rewards.calls import call_reward
from gft.rewards.math import check_math, math_reward
from gft.rewards.pool import RewardPool, Scored

from .scoring import in_a_thread, scores


@pytest.fixture(scope="module")
def maths():
    with RewardPool("math", workers=1, seconds=1.5) as pool:
        yield pool


def test_score_works_outside_the_main_thread(maths):
    assert in_a_thread(lambda: scores(maths, "#### 6*7")) == [Scored(1.0, None)]


def test_math_reward_uses_no_signals():
    assert in_a_thread(lambda: math_reward("", r"\boxed{6 \cdot 7}", "42")) == 1.0


def test_math_reward_compares_mathematics(maths):
    right = [r"\boxed{\frac{1}{2}}", r"\boxed{0.5}", "#### 1/2", r"\boxed{2^{-1}}", r"\boxed{\sqrt{\frac14}}"]
    wrong = [r"\frac{1}{2}", r"\boxed{50}", r"\boxed{0.05}", r"\boxed{hello}", r"\boxed{\frac{}", r"\boxed{}", ""]
    doubtful = [r"\boxed{50\%}", r"\boxed{__import__('os')}"]
    results = scores(maths, *right, *wrong, *doubtful, solution=r"\frac{1}{2}")
    assert [scored.value for scored in results] == [1] * len(right) + [0] * len(wrong) + [None] * len(doubtful)


def test_math_reward_of_a_solution_without_an_answer_is_a_failure(maths):
    for solution in ("$", r"\boxed{}", "####", r"\boxed{1} or \boxed{2}"):
        (scored,) = scores(maths, "#### 1", solution=solution)
        assert scored.value is None, solution
        assert "the solution" in scored.error


def test_math_reward_names_both_texts_and_the_doubt(maths):
    (scored,) = scores(maths, r"\boxed{5 cm}", solution="5")
    assert scored.error == "Doubt: whether '5 cm' equals '5' is in doubt: only one of them has a unit, cm"


def test_math_reward_takes_several_boxes_only_if_they_agree(maths):
    several = r"\boxed{1} \boxed{2} \boxed{3} \boxed{4} \boxed{5} \boxed{6}"
    results = scores(maths, r"\boxed{42} \boxed{6*7}", r"\boxed{41} \boxed{43}", r"\boxed{42} \boxed{43}", several)
    assert [scored.value for scored in results] == [1, 0, None, None]
    assert "marks different answers: '42', '43'" in results[2].error


def test_math_reward_of_a_power_tower_is_refused_at_once(maths):
    start = time.monotonic()
    results = scores(maths, r"\boxed{5^{5^{5^{5}}}}", r"\boxed{6 \cdot 7}", r"\boxed{5^5^5^5}")
    assert [scored.value for scored in results] == [None, 1, None]
    assert "too large to compute" in results[0].error
    assert time.monotonic() - start < 1.5


@pytest.mark.parametrize(
    "solution", ["4", "5 cm", r"\frac{1}{2}", "x = 5", "(B)", "1,2", "Monday", r"\boxed{7}", "3:45 PM"]
)
def test_check_math_takes_solutions_that_answers_can_be_compared_with(solution):
    assert call_reward(check_math, ("", "", solution)) == Scored(1.0, None)


@pytest.mark.parametrize(
    ("solution", "why"),
    [
        (r"\foo{2}", "the solution cannot be read"),
        ("(((", "the solution cannot be read"),
        ("7" * 9000 + "x", "longer than"),
        (r"\boxed{1} or \boxed{2}", "marks different answers"),
        (r"\boxed{}", "is empty"),
    ],
)
def test_check_math_names_what_no_answer_can_be_compared_with(solution, why):
    """Only its own spelling would be right, and any other answer a failure."""
    scored = call_reward(check_math, ("", "", solution))
    assert scored.value is None
    assert why in scored.error
