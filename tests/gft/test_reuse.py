"""Several updates of a batch of rollouts: their groups, old log-probs, and how they resume."""

from __future__ import annotations

import json
from typing import ClassVar

import pytest
import torch

from gft import train as loop
from gft.demo.base_model import tokenizer, untrained
from gft.parts import GroupConfig, ReuseConfig
from gft.policy import make_policy
from gft.rewards.calls import Scored
from gft.state import RunState, random_state
from gft.stop import Stopped

from .runs import EXAMPLES, config, numbers, resume, run, weights

GRPO = {"objective": "grpo", "group": GroupConfig(0, 0, 4), "steps": 6, "prompts_per_step": 2}


def watched(monkeypatch):
    """[(prompts of a batch of rollouts)], [(groups, old log-probs) of every update]."""
    sampled, updates = [], []
    make, accumulate = loop.make_batch, loop.accumulate_gradients

    def make_batch(policy, examples, *rest):
        sampled.append([e.prompt for e in examples])
        return make(policy, examples, *rest)

    def accumulate_gradients(policy, batch, settings):
        updates.append((sorted({m.group for m in batch.members}), [m.old_logprobs for m in batch.members]))
        return accumulate(policy, batch, settings)

    monkeypatch.setattr(loop, "make_batch", make_batch)
    monkeypatch.setattr(loop, "accumulate_gradients", accumulate_gradients)
    return sampled, updates


def test_rollouts_serve_their_steps_in_turn_and_every_pass(policy, tmp_path, monkeypatch):
    sampled, updates = watched(monkeypatch)
    _, rows = run(policy, Spelled(), tmp_path, config(**GRPO, reuse=ReuseConfig(rollout_steps=2, passes=2)))
    assert [len(prompts) for prompts in sampled] == [4, 4]
    assert [groups for groups, _ in updates] == [[0, 1], [2, 3], [0, 1], [2, 3], [0, 1], [2, 3]]
    assert updates[0][1] == updates[2][1]  # recorded once, before the first update
    steps = [r for r in rows if "loss" in r]
    assert steps[0]["ratio"] == pytest.approx(1, abs=1e-5)
    assert all(r["ratio"] != pytest.approx(1, abs=1e-6) for r in steps[1:4])
    assert ["seconds_rollout" in r for r in steps] == [True, False, False, False, True, False]


def test_one_update_records_no_old_log_probs(policy, rewards, tmp_path, monkeypatch):
    _, updates = watched(monkeypatch)
    run(policy, rewards, tmp_path, config(**GRPO | {"steps": 1}))
    assert all(old is None for _, recorded in updates for old in recorded)


class Spelled:
    """Rewards that differ within a group. Responses to `failing` have none."""

    untold: ClassVar[list[str]] = []
    calls = errors = 0
    first_error = ""

    def __init__(self, failing=None):
        self.failing = failing

    def score(self, items, truncated):
        return [
            Scored(None, "no") if e.prompt == self.failing else Scored(sum(map(ord, text)) % 7 / 7, None)
            for text, e in items
        ]


def test_failures_count_for_the_step_of_their_group(policy, tmp_path, monkeypatch):
    sampled, _ = watched(monkeypatch)
    run(policy, Spelled(), tmp_path / "to see the order", config(**GRPO | {"steps": 1}))
    _, rows = run(
        policy,
        Spelled(sampled[0][1]),
        tmp_path / "run",
        config(**GRPO | {"steps": 2}, reuse=ReuseConfig(rollout_steps=2)),
    )
    assert [r["reward_errors"] for r in rows] == [4, 0]


@pytest.mark.parametrize("after", [1, 2, 3, 4, 5])
def test_resume_between_updates_of_one_batch_is_bitwise(after, policy, tmp_path, monkeypatch):
    settings = config(**GRPO, reuse=ReuseConfig(rollout_steps=2, passes=2), save_every=1, keep=0)
    _, whole = run(policy, Spelled(), tmp_path / "whole", settings)
    original, calls = loop.train_step, []

    def stopped(*args):
        calls.append(1)
        if len(calls) == after + 1:
            raise Stopped(15)
        return original(*args)

    monkeypatch.setattr(loop, "train_step", stopped)
    with pytest.raises(Stopped):
        run(make_policy(untrained(0).eval(), tokenizer()), Spelled(), tmp_path / "parts", settings)
    monkeypatch.setattr(loop, "train_step", original)
    _, rows = resume(Spelled(), tmp_path / "parts", settings)
    assert numbers(rows) == numbers(whole)
    assert weights(tmp_path / "parts" / "model") == weights(tmp_path / "whole" / "model")


def test_state_round_trips_recorded_log_probs(policy):
    settings = config(**GRPO, reuse=ReuseConfig(passes=2))
    batch = loop.roll_out(policy, EXAMPLES[:2], settings, Spelled())
    state = RunState(random=random_state(torch.device("cpu")))
    state.hold(batch, 2, torch.device("cpu"))
    state.advance(2, False, 0, torch.device("cpu"))
    again = RunState.from_json(json.loads(json.dumps(state.as_json(EXAMPLES))), EXAMPLES)
    assert again == state
    assert again.used == 1
    assert again.in_use.members[0].old_logprobs is not None
