"""Groups: composition, truncation, and checkers that fail."""

from dataclasses import replace

import pytest
import torch

from gft.config import EMBEDDED
from gft.data.files import Example, Response
from gft.demo import sort_letters
from gft.groups import make_batch
from gft.parts import GroupConfig, SamplingConfig
from gft.rewards.pool import RewardPool, Scored
from gft.update import reward_metrics
from gft_kernels import group_advantages

from .rewards import kinds


def config(experts=1, teachers=3, own=2, objective="gft", **sampling):
    return replace(
        EMBEDDED,
        objective=objective,
        group=GroupConfig(experts, teachers, own),
        sampling=SamplingConfig(max_prompt_tokens=16, max_new_tokens=9, **sampling),
    )


def scored_responses(*rewards):
    """An expert and teachers whose rewards are given."""
    return tuple(Response("ab", "teacher" if i else "expert", reward) for i, reward in enumerate(rewards))


class Failing:
    """A checker that fails on every third response."""

    def score(self, items, truncated):
        return [Scored(None, "boom") if i % 3 == 0 else Scored(float(i % 2), None) for i in range(len(items))]


def test_make_batch_composes_each_group(policy, rewards):
    batch = make_batch(policy, sort_letters.examples(4, seed=0), config(), rewards)
    for group in range(4):
        assert [m.source for m in batch.members if m.group == group] == [
            "expert",
            "teacher",
            "teacher",
            "teacher",
            "self",
            "self",
        ]
    assert all(m.reward == 1.0 for m in batch.members if m.source == "expert")
    assert abs(sum(m.advantage for m in batch.members)) < 1e-5


def test_make_batch_scores_nothing_for_objectives_without_advantages(policy):
    batch = make_batch(policy, sort_letters.examples(2, seed=0), config(1, 0, 0, "sft"), rewards=None)
    assert [m.reward for m in batch.members] == [None, None]
    assert batch.flat_groups == set()


def test_make_batch_cuts_a_long_response_and_scores_its_whole_text(policy):
    """It is trained on up to the limit, without an end: a right one is no mistake for that."""
    examples = [Example("ba=", "abcdefgh", (Response("abcdefgh", "expert"), Response("abcdefgx", "teacher", 0.25)))]
    with RewardPool("exact") as exact:
        batch = make_batch(policy, examples, config(1, 1, 0, max_given_tokens=5), exact)
    assert [(m.reward, m.truncated, m.response) for m in batch.members] == [
        (1.0, True, policy.encode_prompt("abcde")),
        (0.25, True, policy.encode_prompt("abcde")),
    ]


def test_make_batch_keeps_given_rewards(policy, rewards):
    example = Example("ba=", "ab", scored_responses(0.25, 0.75))
    batch = make_batch(policy, [example], config(1, 1, 0), rewards)
    assert [m.reward for m in batch.members] == [0.25, 0.75]


def test_make_batch_drops_what_could_not_be_scored_and_counts_it(policy):
    batch = make_batch(policy, sort_letters.examples(3, seed=0), config(1, 3, 2), Failing())
    assert (len(batch.members), batch.failed) == (12, [0, 0, 1, 2, 0, 1])


def test_make_batch_stops_where_nothing_could_be_scored(policy):
    class Broken:
        def score(self, items, truncated):
            return [Scored(None, "no checker")] * len(items)

    with pytest.raises(RuntimeError, match="no response of this step could be scored; the first reason: no checker"):
        make_batch(policy, sort_letters.examples(2, seed=0), config(), Broken())


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("singleton", ["reward", "zero"])
def test_make_batch_has_the_advantages_of_gft_kernels(policy, rewards, scale, singleton):
    """Groups of four, two and one, and one without spread: the loop has no formula of its own."""
    given = ((1.0, 0.2, 0.0, 0.7), (0.9, 0.1), (0.35, 0.35, 0.35, 0.35), (0.75,))
    examples = [Example("ba=", "ab", scored_responses(*values)) for values in given]
    settings = replace(config(1, 3, 0), group=GroupConfig(1, 3, 0, scale=scale, singleton=singleton))
    batch = make_batch(policy, examples, settings, rewards)
    expected = group_advantages(
        torch.tensor([value for values in given for value in values], dtype=torch.float64),
        torch.tensor([group for group, values in enumerate(given) for _ in values]),
        scale=scale,
        singleton=singleton,
    )
    assert [m.advantage for m in batch.members] == expected.tolist()
    assert batch.flat_groups == ({2} if singleton == "reward" else {2, 3})


def test_flat_groups_are_those_without_spread(policy, rewards):
    flat = Example("ba=", "ab", scored_responses(0.35, 0.35))
    mixed = Example("ba=", "ab", scored_responses(1.0, 0.0))
    batch = make_batch(policy, [flat, mixed], config(1, 1, 0), rewards)
    assert batch.flat_groups == {0}
    assert reward_metrics(batch)["flat_groups"] == 0.5
    assert [m.advantage for m in batch.members[:2]] == [0.0, 0.0]


def test_make_batch_keeps_every_term_of_a_sum(policy):
    """They go into the metrics as means, before their weights; a given reward has no terms."""
    name = f"{kinds.__name__}:length"
    given = (Response("ab", "expert"), Response("abcd", "teacher"), Response("a", "teacher", 0.5))
    with RewardPool(f"exact + 0.5*{name}", workers=1) as pool:
        batch = make_batch(policy, [Example("ba=", "ab", given)], config(1, 2, 0), pool)
    assert [m.reward for m in batch.members] == [2.0, 2.0, 0.5]
    found = reward_metrics(batch)
    assert (found["reward/exact"], found[f"reward/{name}"], found["reward"]) == (0.5, 3.0, 1.5)


@pytest.mark.parametrize("text", ["ab<eos>", "ab<eos>\n", "ab<eos> <eos>"])
def test_make_batch_gives_a_response_that_spells_its_end_the_same_tokens_and_reward(policy, text):
    examples = [Example("ba=", "ab", (Response(written, "expert"),)) for written in ("ab", text)]
    with RewardPool("exact") as exact:
        plain, spelled = make_batch(policy, examples, config(1, 0, 0), exact).members
    assert spelled.response == plain.response == [*policy.encode_prompt("ab"), policy.tokenizer.eos_token_id]
    assert (spelled.text, spelled.reward) == (plain.text, plain.reward) == ("ab", 1.0)


def test_make_batch_scores_the_text_of_the_file(policy):
    """Not one that was encoded and decoded: this tokenizer does not know capitals."""
    example = Example("ba=", "AB", (Response("AB", "expert"),))
    with RewardPool("exact") as exact:
        (member,) = make_batch(policy, [example], config(1, 0, 0), exact).members
    assert (member.text, member.reward) == ("AB", 1.0)
    assert policy.decode(member.response) != "AB"


def test_make_batch_encodes_a_response_behind_its_own_prompt(policy):
    """After a text it ends with eos, after a chat with what the template writes."""
    policy.tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    policy.tokenizer.chat_template = "{% for m in messages %}{{ m.content }}<turn>{% endfor %}"
    turn = policy.tokenizer.convert_tokens_to_ids("<turn>")
    chat = ({"role": "user", "content": "ba="},)
    examples = [Example(prompt, "ab", (Response("ab<turn>", "expert", 1.0),)) for prompt in ("ba=", chat)]
    text, turns = make_batch(policy, examples, config(1, 0, 0, "sft"), rewards=None).members
    assert (text.response[-1], turns.response[-1], turns.prompt[-1]) == (policy.tokenizer.eos_token_id, turn, turn)
    assert text.response[:-1] == turns.response[:-1] == policy.encode_prompt("ab")
    assert policy.end_tokens == {policy.tokenizer.eos_token_id, turn}


def test_make_batch_gives_no_advantage_to_the_only_response_that_could_be_scored(policy):
    """A group of one keeps its reward as advantage, but only where one response was asked for."""

    class OnlyTheFirst:
        def score(self, items, truncated):
            return [Scored(1.0, None)] + [Scored(None, "timed out")] * (len(items) - 1)

    batch = make_batch(policy, sort_letters.examples(1, seed=0), config(0, 0, 4, "grpo"), OnlyTheFirst())
    assert [(m.reward, m.advantage) for m in batch.members] == [(1.0, 0.0)]
    alone = make_batch(policy, sort_letters.examples(1, seed=0), config(1, 0, 0), OnlyTheFirst())
    assert [(m.reward, m.advantage) for m in alone.members] == [(1.0, 1.0)]
