"""Rewards that fail are shown, and too many of them end the run."""

import pytest
from rich.console import Console

from gft.metrics import MetricsLog
from gft.report import Progress
from gft.rewards.pool import RewardPool
from gft.train import train
from gft.watch import FEW

from .runs import EXAMPLES, config


def fails(every):
    """A reward whose every so manyth call raises."""
    calls = []

    def reward(data_source, solution_str, ground_truth, extra_info=None):
        calls.append(1)
        if len(calls) % every == 0:
            raise KeyError(f"call {len(calls)}")
        return float(len(calls) % 3 == 0)

    return reward


def run(policy, every, out, **changes):
    """What a run says whose reward fails so often."""
    console = Console(record=True, width=200)
    settings = config(out=out, reward="exact", steps=6, **changes)
    with (
        RewardPool("exact") as rewards,
        MetricsLog(out / "metrics.jsonl") as log,
        Progress("t", settings.steps, console) as progress,
    ):
        rewards._scorers[0][1].function = fails(every)
        try:
            train(policy, EXAMPLES, [], settings, rewards, log, progress)
        finally:
            said = console.export_text()
            reasons = [line for line in said.splitlines() if "a response could not be scored" in line]
            assert ["KeyError: 'call " in line for line in reasons] == [True] * 3, said
    return rewards


def test_train_ends_where_half_of_the_rewards_fail(policy, tmp_path):
    """A step asks for 18: the fourth has the 64th call."""
    assert 3 * 18 < FEW <= 4 * 18
    with pytest.raises(
        RuntimeError, match=r"36 of 72 responses could not be scored, more than the 30% allowed: .*'call 2'"
    ):
        run(policy, 2, tmp_path)


def test_train_puts_up_with_what_is_allowed(policy, tmp_path):
    assert (run(policy, 4, tmp_path).errors, run(policy, 2, tmp_path, max_failed_rewards=0.5).errors) == (27, 54)
