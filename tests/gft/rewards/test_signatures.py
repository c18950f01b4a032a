"""Reward functions are called as verl's or TRL's are, by their parameters, or refused with how."""

from __future__ import annotations

import pytest

from gft.data.files import Example
from gft.rewards.calls import call_reward
from gft.rewards.pool import RewardPool, Scored
from gft.rewards.signatures import caller_of

from . import kinds

TEXT = ("src", "text", "42", {"prompt": "p", "truncated": True})
CHAT = ("src", "text", "42", {"prompt": ({"role": "user", "content": "p"},), "truncated": False})


def call(function, arguments=TEXT):
    return call_reward(caller_of(function), [arguments])


@pytest.mark.parametrize("function", [kinds.verl, kinds.verl_by_name, kinds.verl_all, kinds.four, kinds.trl_text])
def test_caller_of_hands_over_what_a_function_names(function):
    assert call(function) == Scored(1.0, None)


def test_caller_of_hands_a_chats_completion_over_as_a_list_of_messages():
    assert call(kinds.trl_chat, CHAT) == Scored(1.0, None)
    assert call(kinds.trl_chat) == Scored(0.0, None)  # there a completion is a text


def test_caller_of_takes_what_is_logged_and_any_callable():
    assert call(kinds.trl_logs) == Scored(0.5, None)
    assert call(kinds.grader) == Scored(0.25, None)
    assert call(lambda *values: float(values == TEXT)) == Scored(1.0, None)


def test_a_reward_of_none_in_a_list_does_not_apply():
    assert call(kinds.trl_none) == Scored(None, None)
    assert "returned None (NoneType), not a number" in call(lambda *values: None).error


@pytest.mark.parametrize(("function", "found"), [(kinds.trl_two, "found 2 of them"), (kinds.trl_number, "found float")])
def test_a_function_of_trls_kind_must_return_one_reward(function, found):
    scored = call(function)
    assert scored.value is None
    assert f"must return a list of one reward for one completion, {found}" in scored.error
    assert "not a number" in call(kinds.trl_inner).error


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (kinds.trl_tokens, "has TRL's signature and needs completion_ids besides"),
        (kinds.trl_column, "has TRL's signature and needs target besides"),
        (kinds.verl_column, "has verl's signature and needs method besides"),
        (kinds.two, r"takes \(text, solution\), and neither verl nor TRL calls it so: write f\(data_source"),
        (kinds.named, r"takes \(\*\*columns\), and neither"),
    ],
)
def test_caller_of_refuses_other_signatures_and_says_how(function, words):
    with pytest.raises(TypeError, match=words):
        caller_of(function)


def test_reward_pool_refuses_a_function_that_nobody_calls_before_the_first_response():
    with pytest.raises(ValueError, match="neither verl nor TRL calls it so"):
        RewardPool(f"{kinds.__name__}:two", workers=1)


def test_reward_pool_scores_by_trls_functions():
    examples = [Example("p", "42"), Example(({"role": "user", "content": "p"},), "42")]
    with RewardPool(f"{kinds.__name__}:trl_some", workers=1) as pool:
        long, short = pool.score([("a text", examples[0]), ("text", examples[0])], [False, False])
        assert long == Scored(1.0, None)
        assert short == Scored(None, "no reward applies to the response: None was returned")
        assert (pool.calls, pool.errors) == (2, 1)
    with RewardPool(f"{kinds.__name__}:trl_chat", workers=1) as pool:
        assert pool.score([("text", examples[1])], [False]) == [Scored(1.0, None)]


def test_trls_own_rewards_are_called_as_trl_calls_them():
    rewards = pytest.importorskip("trl.rewards")
    thought = ("", "<think>a</think>b", "42", CHAT[3])
    assert call(rewards.think_format_reward, thought) == Scored(1.0, None)
    assert call(rewards.think_format_reward, CHAT) == Scored(0.0, None)
    for function in (rewards.accuracy_reward, rewards.reasoning_accuracy_reward):
        caller_of(function)
    with pytest.raises(TypeError, match="needs completion_ids besides"):
        caller_of(rewards.get_repetition_penalty_reward())
