"""Groups: composition, truncation, and checkers that fail."""

from dataclasses import replace

import pytest

from gft import sort_letters
from gft.config import EMBEDDED, GroupConfig, SamplingConfig
from gft.data import Example, Response
from gft.groups import fit_prompts, make_batch
from gft.rewards import Scored


def config(experts=1, teachers=3, own=2, objective="gft", **sampling):
    return replace(
        EMBEDDED,
        objective=objective,
        group=GroupConfig(experts, teachers, own),
        sampling=SamplingConfig(max_prompt_tokens=16, max_new_tokens=9, **sampling),
    )


class Failing:
    """A checker that fails on every third response."""

    def score(self, items, truncated):
        return [Scored(None, "boom") if i % 3 == 0 else Scored(float(i % 2), None) for i in range(len(items))]


def test_make_batch_composes_each_group(policy, rewards):
    batch = make_batch(policy, sort_letters.examples(4, seed=0), config(), rewards)
    for group in range(4):
        assert [m.source for m in batch.members if m.group == group] == ["expert", "teacher", "teacher", "teacher", "self", "self"]
    assert all(m.reward == 1.0 for m in batch.members if m.source == "expert")
    assert abs(sum(m.advantage for m in batch.members)) < 1e-5


def test_make_batch_scores_nothing_for_objectives_without_advantages(policy):
    batch = make_batch(policy, sort_letters.examples(2, seed=0), config(1, 0, 0, "sft"), rewards=None)
    assert [m.reward for m in batch.members] == [None, None]


def test_make_batch_marks_a_cut_response_and_trains_no_end_token(policy, rewards):
    batch = make_batch(policy, sort_letters.examples(2, seed=0), config(1, 0, 1, max_given_tokens=5), rewards)
    experts = [m for m in batch.members if m.source == "expert"]
    assert all(m.truncated and m.reward == 0.0 and len(m.response) == 5 for m in experts)
    assert all(policy.tokenizer.eos_token_id not in m.response for m in experts)


def test_make_batch_keeps_given_rewards(policy, rewards):
    example = Example("ba=", "ab", (Response("ab", "expert", 0.25), Response("ba", "teacher", 0.75)), "sort_letters")
    batch = make_batch(policy, [example], config(1, 1, 0), rewards)
    assert [m.reward for m in batch.members] == [0.25, 0.75]


def test_make_batch_drops_what_could_not_be_scored_and_counts_it(policy):
    batch = make_batch(policy, sort_letters.examples(3, seed=0), config(1, 3, 2), Failing())
    assert (len(batch.members), batch.reward_errors) == (12, 6)


def test_make_batch_stops_where_nothing_could_be_scored(policy):
    class Broken:
        def score(self, items, truncated):
            return [Scored(None, "no checker")] * len(items)

    with pytest.raises(RuntimeError, match="no response of this step could be scored; the first reason: no checker"):
        make_batch(policy, sort_letters.examples(2, seed=0), config(), Broken())


def test_make_batch_reports_groups_without_spread(policy, rewards):
    flat = Example("ba=", "ab", (Response("ab", "expert", 0.35), Response("ba", "teacher", 0.35)), "sort_letters")
    mixed = Example("ba=", "ab", (Response("ab", "expert", 1.0), Response("ba", "teacher", 0.0)), "sort_letters")
    batch = make_batch(policy, [flat, mixed], config(1, 1, 0), rewards)
    assert batch.flat_groups == 0.5
    assert [m.advantage for m in batch.members[:2]] == [0.0, 0.0]


def test_fit_prompts_counts_what_does_not_fit(policy):
    kept, dropped = fit_prompts(policy, [Example("a" * 20 + "=", "a"), Example("ba=", "ab")], max_tokens=16)
    assert ([e.prompt for e in kept], dropped) == (["ba="], 1)


def test_composition_refuses_an_empty_group():
    with pytest.raises(ValueError, match="0 expert \\+ 0 teacher \\+ 0 own"):
        config(0, 0, 0).composition()
