"""Accuracies and their intervals: against brute force, counting by hand, and simulated prompts."""

import math
from itertools import combinations

import numpy as np
import pytest

from gft.estimates import estimate, mean_reward, paired_difference, pass_at, pass_at_k, powers_to, summary
from gft.held_out import Answer


def answer(prompt, reward, *, source="sample", sample=0, response="", tokens=(), truncated=False):
    error = "failed" if reward is None else None
    name = f"id-{prompt}"
    return Answer(prompt, name, source, sample, reward, error, truncated, "p", response, "s", list(tokens))


def samples(*rewards):
    """The samples of prompts, each given as a list of rewards."""
    return [answer(p, r, sample=k) for p, own in enumerate(rewards) for k, r in enumerate(own)]


@pytest.mark.parametrize("count", [1, 2, 5, 6])
def test_pass_at_is_the_share_of_subsets_with_a_right_one(count):
    for right in range(count + 1):
        outcomes = [True] * right + [False] * (count - right)
        for k in range(1, count + 1):
            subsets = list(combinations(outcomes, k))
            assert pass_at(count, right, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)


def test_powers_to_ends_at_the_count():
    assert [powers_to(n) for n in (0, 1, 2, 6, 8)] == [[], [1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8]]


def test_mean_reward_leaves_failures_out_and_weighs_every_response():
    found = mean_reward(samples([1.0, None], [0.0, 0.0, 0.0]))
    assert found.value == 0.25


def test_mean_reward_draws_prompts():
    alike = mean_reward(samples(*([float(p % 2)] * 16 for p in range(20))))
    assert alike.high - alike.low > 0.3  # 320 answers that had nothing to do with each other: 0.11


def test_pass_at_k_counts_full_rewards_and_leaves_short_prompts_out():
    found = pass_at_k(samples([1.0, 0.5, 0.0, 0.0], [0.99, 0.5, 0.0, 0.0], [1.0, None, None, None]))
    assert found[1].value == pytest.approx((0.25 + 0 + 1) / 3)
    assert found[2].value == pytest.approx((0.5 + 0) / 2)  # the third prompt has no two scored samples
    assert found[4].value == pytest.approx(0.5)


def test_estimate_is_the_bootstrap_written_out():
    tops, bottoms = [1.0, 0.0, 3.0, 2.0], [2.0, 4.0, 3.0, 2.0]
    drawn = np.random.default_rng(0).integers(4, size=(2000, 4))
    expected = np.quantile(np.array(tops)[drawn].sum(1) / np.array(bottoms)[drawn].sum(1), [0.025, 0.975])
    assert estimate(tops, bottoms) == (6 / 11, *expected)


def test_estimate_covers_as_often_as_it_says_where_answers_to_a_prompt_are_alike():
    """Half of the prompts are always right. Answers drawn anew, and not prompts, would give an
    interval a quarter as wide.
    """
    rng, covered, sims = np.random.default_rng(1), 0, 200
    for _ in range(sims):
        right = rng.random(60) < 0.5
        found = estimate(16.0 * right, np.full(60, 16.0))
        covered += found.low <= 0.5 <= found.high
    assert 0.9 <= covered / sims <= 0.99


def test_estimate_of_few_prompts_says_so():
    assert all(math.isnan(x) for x in estimate([]))
    assert all(math.isnan(x) for x in estimate([0.0], [0.0]))
    value, low, high = estimate([3.0], [4.0])
    assert value == 0.75
    assert math.isnan(low)
    assert math.isnan(high)
    assert estimate([1.0, 1.0]) == (1.0, 1.0, 1.0)


def test_paired_difference_is_over_shared_prompts_and_without_their_difficulty():
    hard = [0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0] * 8
    ours = samples(*([min(r + 0.5, 1.0)] for r in hard))
    theirs = samples(*([r] for r in hard), [1.0])  # one more prompt
    found, shared = paired_difference(ours, theirs)
    assert (found.value, shared) == (pytest.approx(0.25), 64)
    apart = mean_reward(theirs)
    assert found.high - found.low < 0.6 * (apart.high - apart.low)


def test_summary_has_every_number_and_each_is_finite():
    answers = [
        answer(0, 1.0, source="greedy"),
        answer(1, None, source="greedy"),
        answer(0, 1.0, response="a b", tokens=[1, 2, 3]),
        answer(0, 0.0, sample=1, response=" a b ", tokens=[1, 2, 3]),
        answer(1, 0.0, response="x", tokens=[4, 4, 4, 4], truncated=True),
        answer(1, 0.0, sample=1, response="y", tokens=[5]),
    ]
    found = summary(answers)
    assert all(map(math.isfinite, found.values()))
    assert found["greedy"] == 1.0
    assert "greedy_low" not in found  # one scored prompt has no interval
    assert (found["sampled"], found["pass_at_1"], found["pass_at_2"]) == (0.25, 0.25, 0.5)
    assert found["sampled_low"] <= 0.25 <= found["sampled_high"]
    assert found["distinct"] == (1 / 2 + 2 / 2) / 2
    assert found["distinct_2"] == pytest.approx((2 / 4 + 1 / 3) / 2)
    assert (found["response_tokens"], found["truncated"]) == (11 / 4, 1 / 4)
    assert summary([]) == {}
