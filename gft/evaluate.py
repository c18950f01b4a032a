"""Held-out accuracy: of the greedy response, and the mean over samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from .data.files import Example
from .distributed import agreed, share, stream_seed, total
from .policy import Policy
from .rewards.pool import RewardPool
from .rollout import sample
from .usable import check_solved


class Accuracy(NamedTuple):
    """Mean rewards; NaN where no response could be scored."""

    greedy: float
    sampled: float  # mean reward of all samples
    samples: int  # per prompt
    errors: int  # responses whose checker failed; they are left out of the means


def evaluate(
    policy: Policy,
    examples: Sequence[Example],
    rewards: RewardPool,
    *,
    samples: int = 16,
    max_new_tokens: int = 512,
    batch: int = 128,
    temperature: float = 1.0,
    seed: int = 0,
) -> Accuracy:
    """Mean reward of the greedy response and of `samples` samples a prompt.

    The samples are drawn from `seed`, and the caller's random state is left as it was. So the same
    model gets the same accuracy again, and a run that evaluates more often samples the same.

    Raises:
        ValueError: an example has no solution to score with.
    """
    check_solved(examples)
    examples = share(examples)
    prompts = [policy.encode_prompt(e.prompt) for e in examples]
    with torch.random.fork_rng(devices=[policy.device] if policy.device.type == "cuda" else []):
        torch.manual_seed(stream_seed(seed))
        greedy, failed = _mean_reward(policy, examples, prompts, rewards, max_new_tokens, 0.0, batch)
        drawn, more = _mean_reward(
            policy, list(examples) * samples, prompts * samples, rewards, max_new_tokens, temperature, batch
        )
    return Accuracy(greedy, drawn, samples, failed + more)


def _mean_reward(
    policy: Policy,
    examples: Sequence[Example],
    prompts: list[list[int]],
    rewards: RewardPool,
    max_new_tokens: int,
    temperature: float,
    batch: int,
) -> tuple[float, int]:
    """Mean reward of one response to each prompt, and how many could not be scored."""
    with agreed():
        rollouts = sample(policy, prompts, max_new_tokens=max_new_tokens, temperature=temperature, batch=batch)
        scored = rewards.score(
            [(policy.decode(r.tokens), e) for r, e in zip(rollouts, examples, strict=True)],
            [r.truncated for r in rollouts],
        )
    values = [s.value for s in scored if s.value is not None]
    (rewarded,), (count, all_scored) = total(sum(values)), total(len(values), len(scored))
    return (rewarded / count if count else float("nan")), all_scored - count
