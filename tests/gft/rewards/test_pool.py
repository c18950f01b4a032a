"""Rewards in place, and the pool: what is scored, refused or counted as an error."""

from __future__ import annotations

import pytest

from gft.data.files import Example
from gft.rewards.pool import RewardPool, Scored

from .scoring import EXAMPLE, values


def test_number_reward_has_no_tolerance():
    texts = ["#### 42", "#### 42.0", r"\boxed{84/2}", "#### 4200", "#### 0.42", "#### 42%", "#### 42.0000001", "42", ""]
    assert values("number", *texts) == [1, 1, 1, 0, 0, None, 0, 0, 0]


def test_number_reward_reads_a_marked_solution_and_refuses_one_that_is_no_number():
    assert values("number", "#### 42", solution="6*7\n#### 42") == [1]
    assert values("number", "#### 42", "#### x", solution="x") == [None, None]


def test_exact_reward_ignores_only_outer_white_space():
    assert values("exact", "42", " 42\n", "4 2", "42.0", "#### 42") == [1, 1, 0, 0, 0]


@pytest.mark.parametrize("reward", ["exact", "number"])
def test_score_gives_zero_to_truncated_responses_of_built_in_rewards(reward):
    right = {"exact": "42", "number": "#### 42"}[reward]
    with RewardPool(reward) as pool:
        assert pool.score([(right, EXAMPLE)] * 2, [True, False]) == [Scored(0.0, None), Scored(1.0, None)]


def test_score_without_solution_is_an_error_and_counted():
    with RewardPool("exact") as pool:
        (scored,) = pool.score([("", Example("p", " ", origin="file.jsonl:9"))], [True])
        assert scored == Scored(None, "file.jsonl:9: there is no solution to compare with")
        assert pool.errors == 1


def test_score_of_a_truncated_response_still_needs_a_readable_solution():
    with RewardPool("number") as pool:
        unreadable = Example("p", "x + 1", origin="f:1")
        scored = pool.score([("#### 2", unreadable), ("#### 2", unreadable)], [False, True])
    assert [s.value for s in scored] == [None, None]


def test_score_refuses_lengths_that_differ():
    with RewardPool("exact") as pool, pytest.raises(ValueError, match="1 items with 2 truncation flags"):
        pool.score([("42", EXAMPLE)], [False, False])
    with RewardPool("exact") as pool:
        assert pool.score([], []) == []


def test_reward_pool_refuses_what_is_no_reward():
    with pytest.raises(TypeError, match="reward is None"):
        RewardPool(None)


def test_reward_pool_names_the_choices_when_the_reward_is_unknown():
    with pytest.raises(ValueError, match=r"reward = 'maths' is unknown: choose 'exact', 'number', 'math'"):
        RewardPool("maths")
    with pytest.raises(ValueError, match="must all be positive"):
        RewardPool("math", workers=0)
