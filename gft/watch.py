"""What is told of a run that goes wrong, and what ends it."""

from __future__ import annotations

from itertools import chain

from .config import TrainConfig
from .distributed import gather, total
from .report import Progress
from .rewards.pool import RewardPool
from .state import RunState

FEW = 64  # calls of a reward function that say nothing about its share of failures


def watch(row: dict, state: RunState, config: TrainConfig, rewards: RewardPool, progress: Progress) -> None:
    """Look at a step that was made, and at the rewards so far.

    Raises:
        RuntimeError: the gradient was not finite for too many steps in a row, or too many
            responses could not be scored.
    """
    if state.step == 1 and row.get("reward_expert") == 0:
        # Experts are right. If none of them scores, the reward reads another answer format.
        progress.say(
            f"every expert response of the first step scored 0: is {config.reward_name()} the reward for this data?"
        )
    # One bad gradient costs one step. Several in a row come from the weights, which a step that is
    # skipped does not change: the run would go on to its end without learning.
    if state.bad_steps >= config.optim.bad_steps:
        raise RuntimeError(
            f"the gradient norm was {row['grad_norm']} for {state.bad_steps} steps in a row, up to step {state.step}: "
            f"lower --lr, which is {config.optim.lr}."
        )
    for reason in chain.from_iterable(gather(rewards.untold)):
        progress.say(f"a response could not be scored: {reason}")
    rewards.untold.clear()
    calls, errors = total(rewards.calls, rewards.errors)
    if calls >= FEW and errors > config.max_failed_rewards * calls:
        first_error = next(filter(None, gather(rewards.first_error)))
        raise RuntimeError(
            f"{errors} of {calls} responses could not be scored, more than the "
            f"{config.max_failed_rewards:.0%} allowed: mend --reward {config.reward_name()} or the prompts, or raise "
            f"--max-failed-rewards. The first reason: {first_error}"
        )
