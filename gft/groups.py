"""From prompts to groups of scored responses: the given ones and the policy's own."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from gft_kernels import group_advantages

from .config import TrainConfig
from .data.files import Example, Response, Source
from .distributed import agreed, gather, rank, share
from .parts import GroupConfig
from .policy import Policy
from .rewards.pool import RewardPool
from .samplers import draw


@dataclass
class Member:
    """One response of a group, as tokens."""

    group: int  # the place of its prompt in the rollouts of all ranks: one that comes twice has two groups
    source: Source
    prompt: list[int]
    response: list[int]
    text: str  # what the reward function reads
    truncated: bool
    example: Example
    reward: float | None = None
    advantage: float = 1.0  # where there are no rewards, every response counts alike
    reward_parts: dict[str, float] = field(default_factory=dict)  # of a sum: every term's, before its weight
    logprobs: list[float] | None = None  # of the sampler, of its own tokens
    old_logprobs: list[float] | None = None  # of the policy that sampled, as the trainer computes them
    ref_logprobs: list[float] | None = None  # of the reference policy


@dataclass
class Batch:
    """The members of one optimiser step, or of the steps that a batch of rollouts serves."""

    members: list[Member]
    failed: list[int] = field(default_factory=list)  # of every response that could not be scored, its group
    seconds: dict[str, float] = field(default_factory=dict)  # what sampling and scoring took

    def part(self, groups: range) -> Batch:
        """What belongs to these groups."""
        members = [m for m in self.members if m.group in groups]
        return Batch(members, [group for group in self.failed if group in groups])

    @property
    def flat_groups(self) -> set[int]:
        """Groups whose advantages are all 0: no response is better than another."""
        return {m.group for m in self.members} - {m.group for m in self.members if m.advantage != 0}


def make_batch(policy: Policy, examples: Sequence[Example], config: TrainConfig, rewards: RewardPool) -> Batch:
    """One group of responses for every example, with rewards and advantages; on a rank, its share.

    A response whose checker failed is left out. A reward of 0 would train the policy on the
    checker's faults.

    Raises:
        RuntimeError: no response could be scored.
    """
    start = time.perf_counter()
    groups = share(list(enumerate(examples)))
    with agreed():
        members = _given(policy, groups, config) + _own(policy, groups, config)
    sampled = time.perf_counter()
    if not config.asks_for_rewards():
        # A slow checker would be run for nothing.
        return Batch(members, seconds={"seconds_rollout": sampled - start})
    with agreed():
        errors = _score(members, rewards)
    scored = [m for m in members if m.reward is not None]
    if not any(gather(len(scored))):
        reasons = [reason for found in gather(errors[:1]) for reason in found]
        raise RuntimeError(f"no response of this step could be scored; the first reason: {reasons[0]}")
    _set_advantages(scored, Counter(m.group for m in members), config.group)
    seconds = {"seconds_rollout": sampled - start, "seconds_reward": time.perf_counter() - sampled}
    return Batch(scored, [m.group for m in members if m.reward is None], seconds)


def given_responses(example: Example, config: TrainConfig) -> list[Response]:
    """The experts and teachers of an example that the composition asks for: the first ones."""
    left = dict(zip(("expert", "teacher"), config.composition()[:2], strict=True)) | {"self": 0}
    chosen = []
    for response in example.responses:
        if left[response.source]:
            left[response.source] -= 1
            chosen.append(response)
    return chosen


def _given(policy: Policy, groups: Sequence[tuple[int, Example]], config: TrainConfig) -> list[Member]:
    """The given responses as members.

    One that is longer than the limit is here to be cut (--long-given). It has no end token, so that
    the policy does not learn to stop in the middle. Its reward is that of its whole text: it was
    not cut by whoever wrote it, and a reward of 0 would train against a right beginning.
    """
    limit = config.sampling.max_given_tokens
    members = []
    for group, example in groups:
        prompt = policy.encode_prompt(example.prompt)
        for response in given_responses(example, config):
            tokens, text = policy.encode_response(response.text, example.prompt), policy.response_text(response.text)
            cut = len(tokens) > limit
            members.append(Member(group, response.source, prompt, tokens[:limit], text, cut, example, response.reward))
    return members


def _own(policy: Policy, groups: Sequence[tuple[int, Example]], config: TrainConfig) -> list[Member]:
    """Samples of the current policy as members, all groups in one call: large batches are fast."""
    count, sampling = config.composition()[2], config.sampling
    if not count:
        return []
    prompts = [(group, example, policy.encode_prompt(example.prompt)) for group, example in groups]
    asked = [prompt for prompt in prompts for _ in range(count)]
    rollouts = draw(policy, [tokens for *_, tokens in asked], sampling)
    return [
        Member(group, "self", tokens, r.tokens, policy.decode(r.tokens), r.truncated, example, logprobs=r.logprobs)
        for (group, example, tokens), r in zip(asked, rollouts, strict=True)
    ]


def _score(members: Sequence[Member], rewards: RewardPool) -> list[str]:
    """Set the rewards that the data did not give; returns why some could not be scored."""
    unscored = [m for m in members if m.reward is None]
    unfinished = [m.truncated and m.source == "self" for m in unscored]  # a given one that is cut has its whole text
    scored = rewards.score([(m.text, m.example) for m in unscored], unfinished)
    for member, score in zip(unscored, scored, strict=True):
        member.reward, member.reward_parts = score.value, dict(score.parts)
    return [score.error for score in scored if score.error is not None]


def _set_advantages(members: Sequence[Member], asked: Counter[int], group: GroupConfig) -> None:
    """A_k of every scored response, as gft_kernels defines it.

    `asked` has the size of every group before its unscored responses were left out. A response
    whose fellows all failed gets 0: there is nothing to compare it with. It is no group of one by
    design, whose advantage is its reward (`singleton`).
    """
    found = Counter(m.group for m in members)
    # Those of all ranks: the std of a batch is that of the whole step.
    of_ranks = gather([(m.reward, m.group) for m in members])
    scores, groups = zip(*(pair for of_rank in of_ranks for pair in of_rank), strict=True)
    advantages = group_advantages(
        torch.tensor(scores, dtype=torch.float64),
        torch.tensor(groups),
        scale=group.scale,
        singleton=group.singleton,
    )
    before = sum(map(len, of_ranks[: rank()]))
    own = advantages[before : before + len(members)].tolist()
    for member, advantage in zip(members, own, strict=True):
        lonely = asked[member.group] > found[member.group] == 1
        member.advantage = 0.0 if lonely else advantage
