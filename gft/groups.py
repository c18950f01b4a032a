"""From prompts to groups of scored responses: the given ones and the policy's own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gft_kernels import group_advantages
from gft_kernels.losses.advantages import group_statistics

from .config import TrainConfig
from .data.files import Example, Response, Source
from .policy import Policy
from .rewards.pool import RewardPool
from .rollout import sample


@dataclass
class Member:
    """One response of a group, as tokens."""

    group: int
    source: Source
    prompt: list[int]
    response: list[int]
    text: str  # what the reward function reads
    truncated: bool
    example: Example
    reward: float | None = None
    advantage: float = 0.0
    spread: bool = True  # the rewards of its group differ


@dataclass
class Batch:
    """The members of one optimiser step."""

    members: list[Member]
    flat_groups: float  # share of groups whose rewards are all equal
    reward_errors: int


def fit_prompts(policy: Policy, examples: Sequence[Example], max_tokens: int) -> tuple[list[Example], int]:
    """Examples whose prompt has 1 to max_tokens tokens, and how many have not."""
    kept = [e for e in examples if 0 < len(policy.encode_prompt(e.prompt)) <= max_tokens]
    return kept, len(examples) - len(kept)


def check_examples(examples: Sequence[Example], config: TrainConfig) -> list[str]:
    """What of the asked-for groups the data cannot fill, in words.

    Raises:
        ValueError: a group would be empty, or could not be scored.
    """
    experts, teachers, own = config.composition()
    used = [given_responses(e, config) for e in examples]
    notes = []
    for source, asked in (("expert", experts), ("teacher", teachers)):
        found = sum(r.source == source for responses in used for r in responses) / len(examples)
        if found < asked:
            notes.append(f"{source} responses in the data: {found:.3g} a group, {asked} asked for")
    empty = [e.origin for e, responses in zip(examples, used, strict=True) if not own and not responses]
    if empty:
        raise ValueError(
            f"{len(empty)} of {len(examples)} examples have no response to train on, the first: {empty[0]}. Give "
            "--own, or drop them."
        )
    if "advantages" in config.objective_function().needs:
        unscored = [own or any(r.reward is None for r in responses) for responses in used]
        unsolved = [e.origin for e, ask in zip(examples, unscored, strict=True) if ask and not e.solution.strip()]
        if unsolved:
            raise ValueError(
                f"{len(unsolved)} of {len(examples)} examples have no solution to score responses with, the first: "
                f"{unsolved[0]}. "
                f"{config.objective or 'gft'} needs rewards: add a solution column, or train with --objective sft."
            )
    return notes


def make_batch(policy: Policy, examples: Sequence[Example], config: TrainConfig, rewards: RewardPool) -> Batch:
    """Groups of expert, teacher and own responses with rewards and advantages.

    Rewards are asked for only where the objective uses advantages. A response whose checker failed
    leaves its group.
    """
    members = _given(policy, examples, config) + _own(policy, examples, config)
    if "advantages" not in config.objective_function().needs:
        return Batch(members, 0.0, 0)
    unscored = [m for m in members if m.reward is None]
    scored = rewards.score([(m.text, m.example) for m in unscored], [m.truncated for m in unscored])
    for member, score in zip(unscored, scored, strict=True):
        member.reward = score.value
    errors = [s.error for s in scored if s.value is None]
    asked = Counter(m.group for m in members)
    members = [m for m in members if m.reward is not None]
    if not members:
        raise RuntimeError(f"no response of this step could be scored; the first reason: {errors[0]}")
    values = torch.tensor([m.reward for m in members], dtype=torch.float64)
    groups = torch.tensor([m.group for m in members])
    advantages = group_advantages(values, groups, scale=config.group.scale, singleton=config.group.singleton)
    statistics = group_statistics(values, groups)
    spread, size = statistics.spread[statistics.group_of], statistics.size[statistics.group_of]
    for i, member in enumerate(members):
        lone = (
            size[i] == 1 and asked[member.group] > 1
        )  # its fellows could not be scored: there is nothing to compare it with
        member.advantage = 0.0 if lone else advantages[i].item()
        member.spread = bool(spread[i])
    return Batch(members, 1 - statistics.spread.double().mean().item(), len(errors))


def given_responses(example: Example, config: TrainConfig) -> list[Response]:
    """The first asked-for experts and teachers of an example, in its order."""
    left = dict(zip(("expert", "teacher"), config.composition()[:2], strict=True)) | {"self": 0}
    chosen = []
    for response in example.responses:
        if left[response.source]:
            left[response.source] -= 1
            chosen.append(response)
    return chosen


def _given(policy: Policy, examples: Sequence[Example], config: TrainConfig) -> list[Member]:
    """The given responses as members; one cut at the length limit has no end token and reward 0."""
    limit = config.sampling.max_given_tokens
    members = []
    for group, example in enumerate(examples):
        prompt = policy.encode_prompt(example.prompt)
        for response in given_responses(example, config):
            tokens = policy.encode_response(response.text)
            cut = len(tokens) > limit
            reward = 0.0 if cut else response.reward
            members.append(Member(group, response.source, prompt, tokens[:limit], response.text, cut, example, reward))
    return members


def _own(policy: Policy, examples: Sequence[Example], config: TrainConfig) -> list[Member]:
    count, sampling = config.composition()[2], config.sampling
    if not count:
        return []
    prompts = [policy.encode_prompt(e.prompt) for e in examples]
    owners = [g for g in range(len(examples)) for _ in range(count)]
    rollouts = sample(
        policy,
        [prompts[g] for g in owners],
        max_new_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
        batch=sampling.batch,
    )
    return [
        Member(g, "self", prompts[g], r.tokens, policy.decode(r.tokens), r.truncated, examples[g])
        for g, r in zip(owners, rollouts, strict=True)
    ]
