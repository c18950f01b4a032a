"""Runs of three steps that one process and several make alike, and what they leave.

All responses are given, or own samples that were recorded: several processes draw others than one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import LlamaConfig, LlamaForCausalLM

from gft import groups
from gft.config import TrainConfig
from gft.data.files import Example
from gft.data.formats import Response
from gft.demo import sort_letters
from gft.demo.base_model import tokenizer
from gft.distributed import gather
from gft.metrics import metrics_log
from gft.parts import GroupConfig, OptimConfig, ReuseConfig, SamplingConfig
from gft.policy import Policy, make_policy
from gft.reference import make_reference
from gft.report import Progress
from gft.rewards.calls import Scored
from gft.rewards.pool import Items, RewardPool
from gft.rollout import Rollout
from gft.samplers import draw
from gft.train import prompt_order, train

STEPS, PROMPTS, OWN = 3, 12, 2


@dataclass
class Scenario:
    """What differs from a run of three groups a step, each of one expert and three teachers."""

    prompts: int = 3
    group: GroupConfig = field(default_factory=partial(GroupConfig, 1, 3, 0))
    options: dict[str, Any] = field(default_factory=dict)
    flat: Callable[[int], bool] = lambda place: False  # groups whose responses score alike, by their place in the run


SCENARIOS = {
    # Rank 0 has two groups of three and rank 1 has one: two micro-batches more, of unequal lengths.
    "unequal groups in micro-batches": Scenario(),
    "a batch's std": Scenario(group=GroupConfig(1, 3, 0, scale="batch")),
    "means of sequences": Scenario(options={"reduction": "seq-mean-token-mean"}),
    "a rank whose groups are all flat": Scenario(prompts=4, flat=lambda place: place % 2 == 1),
    "flat groups that are not counted": Scenario(
        prompts=4, group=GroupConfig(1, 3, 0, count_flat=False), flat=lambda place: place % 3 == 0
    ),
    "a rank without a group": Scenario(prompts=1),
    "all flat": Scenario(flat=lambda place: True),
    "own samples": Scenario(group=GroupConfig(1, 1, OWN)),
    # One and a half batches of rollouts, whose parts have two groups of rank 0 and one of rank 1.
    "several updates of a batch": Scenario(
        group=GroupConfig(1, 1, OWN), options={"objective": "grpo", "reuse": ReuseConfig(rollout_steps=2)}
    ),
    # Rank 1 has no group, and takes part with a member that has log-probs of no token.
    "KL and importance weights": Scenario(
        prompts=1, group=GroupConfig(1, 1, OWN), options={"reuse": ReuseConfig(kl=0.1, importance_cap=2.0)}
    ),
    "packed rows": Scenario(),
}


def model() -> LlamaForCausalLM:
    """Two layers without biases: a gradient that is 0 but for rounding is a step of either sign."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=29, pad_token_id=0, eos_token_id=1, **sizes)).eval()


def examples(flat: Callable[[int], bool]) -> list[Example]:
    """Twelve prompts, whose responses have other lengths and rewards in every group."""
    found = sort_letters.examples(PROMPTS, seed=0, teachers=3)
    for place, i in enumerate(islice(prompt_order(PROMPTS, seed=0), PROMPTS)):
        e = found[i]
        rewards = [1.0, 0.0, 0.25 * (place % 4), -0.5 * (place % 3)]
        responses = [
            Response(r.text[: 2 + (place + k) % 5], r.source, 0.5 if flat(place) else reward)
            for k, (r, reward) in enumerate(zip(e.responses, rewards, strict=True))
        ]
        found[i] = replace(e, responses=tuple(responses))
    return found


class Lengths(RewardPool):
    """A reward that tells samples of an untrained model apart."""

    def __init__(self) -> None:
        super().__init__("exact")

    def score(self, items: Items, truncated: Sequence[bool]) -> list[Scored]:
        return [Scored(len(text) % 3 / 2, None) for text, _ in items]


Drawn = list[list[Rollout]]  # by call


def recording(drawn: Drawn) -> Callable[..., list[Rollout]]:
    def record(*args: Any, **options: Any) -> list[Rollout]:
        drawn.append(draw(*args, **options))
        return drawn[-1]

    return record


def replaying(of_ranks: Sequence[Drawn]) -> Callable[..., list[Rollout]]:
    """The samples of several ranks, which have the groups of a step in turns."""
    calls = count()

    def replay(policy: Policy, prompts: list[list[int]], sampling: SamplingConfig) -> list[Rollout]:
        call = next(calls)
        places = [divmod(i, OWN) for i in range(len(prompts))]
        return [of_ranks[group % len(of_ranks)][call][group // len(of_ranks) * OWN + k] for group, k in places]

    return replay


def run(name: str, kind: str | None, out: Path, recorded: Sequence[Drawn] | None = None) -> list[Drawn]:
    """A scenario, by all ranks, or by one with the samples that several drew; returns these."""
    scenario = SCENARIOS[name]
    config = TrainConfig(
        steps=STEPS,
        prompts_per_step=scenario.prompts,
        group=scenario.group,
        sampling=SamplingConfig(max_new_tokens=4),
        optim=OptimConfig(lr=3e-4, micro_batch=2, max_grad_norm=0.05, packed=name == "packed rows"),
        out=out,
        keep=1,
        parallel=kind,
        **{"objective": "gft", **scenario.options},
    )
    policy = make_policy(model(), tokenizer())
    drawn: Drawn = []
    groups.draw = recording(drawn) if recorded is None else replaying(recorded)
    try:
        with metrics_log(out / "metrics.jsonl") as log, Progress("", STEPS, Console(quiet=True)) as progress:
            first = None if config.reuse.kl is None else make_reference(policy)
            train(policy, examples(scenario.flat), [], config, Lengths(), log, progress, reference=first)
    finally:
        groups.draw = draw
    return gather(drawn)
