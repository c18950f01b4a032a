"""Rewards: only a marked final answer counts."""

from __future__ import annotations

import time
from fractions import Fraction

import pytest
from scoring import EXAMPLE, in_a_thread, scores, values

from gft.data.files import Example
from gft.rewards.pool import RewardPool, Scored, final_answer, parse_number


@pytest.fixture(scope="module")
def maths():
    with RewardPool("math", workers=1, seconds=1.5) as pool:
        yield pool


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("6 * 7\n#### 42", "42"),
        ("6 * 7\n####42  \n\n", "42"),
        ("#### 1\nso\n#### 2", "2"),
        (r"\boxed{1} or \boxed{42}.", "42"),
        (r"\boxed{\frac{1}{2}} it is", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{(0, 1\}}.", r"(0, 1\}"),  # an escaped brace closes nothing
        (r"\boxed{7}" + "\n#### 42", "42"),
        (r"#### \boxed{42}", "42"),
        ("the answer is 42", None),
        ("#### 42\nor perhaps 43", None),  # not on the last line: the text went on
        ("so #### 42", None),
        (r"\boxed{42", None),  # cut
        (r"\boxed{1} \boxed{42", None),
        ("", None),
        ("####", ""),
    ],
)
def test_final_answer_takes_only_marked_answers(text, answer):
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("42", 42),
        (" -1,234.50. ", Fraction("-1234.5")),
        ("$7", 7),
        (r"\$1,000,000", 1000000),
        ("3/4", Fraction(3, 4)),
        (".5", Fraction(1, 2)),
        ("+6.", 6),
        ("0.1", Fraction(1, 10)),
    ],
)
def test_parse_number_is_exact(text, number):
    assert parse_number(text) == number


@pytest.mark.parametrize(
    "text",
    ["", "12%", "1e9", "1,2", "12,34", "1/0", "1.5/2", "7 apples", "--1", "nan", "inf", "٣", "9" * 5000, "1 000"],
)
def test_parse_number_refuses_anything_else(text):
    assert parse_number(text) is None


def test_number_reward_has_no_tolerance():
    texts = [
        "#### 42",
        "#### 42.0",
        "#### $42.",
        r"\boxed{84/2}",
        "#### 4200",
        "#### 0.42",
        "#### 42%",
        "#### 42.0000001",
        "it is 42",
        "42",
        "",
    ]
    assert values("number", *texts) == [1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0]


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


def test_score_refuses_lengths_that_differ():
    with RewardPool("exact") as pool, pytest.raises(ValueError, match="1 items with 2 truncation flags"):
        pool.score([("42", EXAMPLE)], [False, False])
    with RewardPool("exact") as pool:
        assert pool.score([], []) == []


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


def test_reward_pool_refuses_what_is_no_reward():
    with pytest.raises(TypeError, match="reward is None"):
        RewardPool(None)


def test_reward_pool_names_the_choices_when_the_reward_is_unknown():
    with pytest.raises(ValueError, match=r"reward = 'maths' is unknown: choose 'exact', 'number', 'math'"):
        RewardPool("maths")
    with pytest.raises(ValueError, match="must all be positive"):
        RewardPool("math", workers=0)
