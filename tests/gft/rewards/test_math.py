"""The reward "math": mathematics is compared, in a worker, with limits."""

from __future__ import annotations

import time

import pytest

from gft.rewards.pool import RewardPool, Scored

from .scoring import in_a_thread, scores


@pytest.fixture(scope="module")
def maths():
    with RewardPool("math", workers=1, seconds=1.5) as pool:
        yield pool


def test_score_works_outside_the_main_thread(maths):
    assert in_a_thread(lambda: scores(maths, "#### 6*7")) == [Scored(1.0, None)]


def test_math_reward_uses_no_signals():
    math_reward = pytest.importorskip(
        "gft.rewards.math"
    ).math_reward  # math-verify's time-outs fail where signals do: in a thread
    assert in_a_thread(lambda: math_reward("", r"\boxed{6 \cdot 7}", "42")) == 1.0


def test_math_reward_compares_mathematics(maths):
    right = [
        r"\boxed{\frac{1}{2}}",
        r"\boxed{0.5}",
        r"\boxed{\frac{2}{4}}",
        "#### 1/2",
        r"\boxed{2^{-1}}",
        r"\boxed{\sqrt{\frac14}}",
    ]
    wrong = [
        r"\frac{1}{2}",
        r"\boxed{50}",
        r"\boxed{0.05}",
        r"\boxed{hello}",
        r"\boxed{\frac{}",
        r"\boxed{}",
        "",
        r"\boxed{__import__('os')}",
    ]
    results = scores(maths, *right, *wrong, solution=r"\frac{1}{2}")
    assert [scored.value for scored in results] == [1.0] * len(right) + [0.0] * len(wrong)
    assert scores(maths, "#### x", solution="$")[0].value is None


def test_math_reward_of_a_power_tower_does_not_hang(maths):
    start = time.monotonic()
    results = scores(maths, r"\boxed{5^{5^{5^{5}}}}", r"\boxed{6 \cdot 7}", r"\boxed{5^5^5^5}")
    assert results[0] == Scored(None, "timed out after 1.5 s")
    assert results[1] == Scored(1.0, None)
    assert results[2].value in (None, 0.0)
    assert time.monotonic() - start < 10
