"""Responses of a teacher, appended to the groups of a file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from ..data.files import Example
from ..model.policy import Policy
from ..rewards.calls import Scored
from ..rewards.pool import RewardPool
from ..runs.record import flat
from ..sampling.rollout import Rollout
from ..sampling.samplers import draw
from ..settings.config import default_reward
from ..settings.options import OptionError, check_limits, check_ranges, check_suffix
from ..settings.parts import RewardLimits, SamplingConfig
from ..stop import check, held
from ..usable import position_limit
from .growing_file import GrowingFile

SEED_STEP = 1_000_003  # between the seeds of two rows: seeds of runs are seldom so far apart
# Options that no row depends on. The data are known by their hash.
FREE = ("data", "out", "resume", "overwrite", "device", "limits.reward_workers")


class Told(NamedTuple):
    """What became of the responses of a batch of rows."""

    counts: Counter[str]
    rewards: list[float]


@dataclass(frozen=True)
class SampleConfig:
    """Sample responses of a teacher to the prompts of a file, score them, and write groups."""

    model: Path
    """A local transformers folder: the teacher."""
    data: str
    """As for train. Responses that it has are kept."""
    out: Path
    """The .jsonl file of groups that is written, a row for every row of the data. `gft train --data`
    reads it."""
    samples: int = 4
    """Responses a prompt. 0 writes the data as groups, and samples nothing."""
    temperature: float = 1.0
    max_new_tokens: int = 2048
    """Longer responses are cut, and dropped unless --keep-truncated."""
    max_prompt_tokens: int = 1024
    """Rows with longer prompts get no responses, and are counted."""
    source: Literal["teacher", "expert"] = "teacher"
    """What the responses are in their group."""
    prompt_suffix: str | None = None
    """As for train. The groups have it, and training then needs none."""
    reward: str | None = None
    """As for train; none scores nothing, and training does it."""
    limits: RewardLimits = field(default_factory=RewardLimits)
    keep_truncated: bool = False
    """Keep responses that were cut. In training they get an end token like any other."""
    prompts: int | None = None
    """Rows to sample, from the start. None is all."""
    max_bad_fraction: float = 0.01
    """As for train."""
    sampler: Literal["generate", "continuous", "vllm"] = "generate"
    """As for train."""
    vllm_memory: float = 0.8
    """The share of the GPU's memory that vLLM may take (vllm)."""
    batch: int = 128
    """Sequences generated at once."""
    seed: int = 0
    """Seed of the samples."""
    resume: bool = False
    """Go on with --out after its last whole batch of rows."""
    overwrite: bool = False
    """Replace --out."""
    device: str | None = None
    """cuda, cpu, ... None takes the GPU where there is one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 on a GPU, float32 elsewhere."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.out.suffix != ".jsonl":
            raise OptionError(f"--out is {self.out}; groups are written as .jsonl.")
        if not self.data.startswith("rg:") and self.out.resolve() == Path(self.data).resolve():
            raise OptionError(f"--out is the file of --data, {self.data}: give another one.")
        if self.sampler != "vllm" and self.vllm_memory != SampleConfig.vllm_memory:
            raise OptionError(f"--vllm-memory is {self.vllm_memory}, and would do nothing: it is of --sampler vllm.")
        check_suffix(self)
        check_limits(self.limits, self.reward_name() or "exact")

    def reward_name(self) -> str | None:
        """The reward, or the one that suits the data; None where nothing is scored."""
        return default_reward(self.data) if self.reward is None else None if self.reward == "none" else self.reward

    def rows_at_once(self) -> int:
        """Rows whose responses are sampled together, from one seed, and written together."""
        return max(1, self.batch // max(1, self.samples))

    def sampling(self) -> SamplingConfig:
        return SamplingConfig(
            max_prompt_tokens=self.max_prompt_tokens,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            batch=self.batch,
            sampler=self.sampler,
            vllm_memory=self.vllm_memory,
        )

    def made_of(self) -> dict[str, Any]:
        """The options that a row depends on, as what JSON has."""
        return {name: str(v) if isinstance(v, Path) else v for name, v in flat(self) if name not in FREE}


def sample_groups(
    policy: Policy, examples: Sequence[Example], config: SampleConfig, rewards: RewardPool | None, file: GrowingFile
) -> Iterator[Told]:
    """Write the rows of `examples` that the file lacks; yields after every batch.

    The samples of a batch of rows have a seed of their own, from its place among the rows. So a run
    that goes on writes what it would have written before.

    Raises:
        Stopped: a signal ended the run; the file can be gone on with.
    """
    with held():  # a signal is taken between two tokens, and never within a row
        while file.done < len(examples):
            check()
            chosen = examples[file.done : file.done + config.rows_at_once()]
            torch.manual_seed((config.seed + SEED_STEP * file.done) % 2**63)
            rows, told = _sampled(policy, chosen, config, rewards)
            file.write(rows)
            yield told


def _sampled(
    policy: Policy, examples: Sequence[Example], config: SampleConfig, rewards: RewardPool | None
) -> tuple[list[dict[str, Any]], Told]:
    """A row for every example, and what became of the responses."""
    prompts = [_prompt(policy, e, config) for e in examples]
    owners = [i for i, prompt in enumerate(prompts) if prompt is not None for _ in range(config.samples)]
    rollouts = draw(policy, [prompts[i] or [] for i in owners], config.sampling()) if owners else []
    kept = [(i, r, policy.decode(r.tokens)) for i, r in zip(owners, rollouts, strict=True) if _is_kept(r, config)]
    scores = [Scored(None, None)] * len(kept)
    if rewards is not None:
        scores = rewards.score([(text, examples[i]) for i, _, text in kept], [r.truncated for _, r, _ in kept])
    rows = [_row(example) for example in examples]
    for (i, _, text), score in zip(kept, scores, strict=True):
        rows[i]["completions"].append(text)
        rows[i]["sources"].append(config.source)
        rows[i]["rewards"].append(score.value)
    counts = Counter(
        responses=len(kept),
        truncated=sum(r.truncated for r in rollouts),
        unscored=sum(s.error is not None for s in scores),
        unanswered=prompts.count(None),
    )
    return rows, Told(counts, [s.value for s in scores if s.value is not None])


def _is_kept(rollout: Rollout, config: SampleConfig) -> bool:
    return config.keep_truncated or not rollout.truncated


def _prompt(policy: Policy, example: Example, config: SampleConfig) -> list[int] | None:
    """Tokens of a prompt that can be answered.

    None of one that is empty, too long, or refused by the chat template.
    """
    try:
        tokens = policy.encode_prompt(example.prompt)
    except ValueError:
        return None
    limit = position_limit(policy)
    fits = limit is None or len(tokens) + config.max_new_tokens <= limit
    return tokens if 0 < len(tokens) <= config.max_prompt_tokens and fits else None


def _row(example: Example) -> dict[str, Any]:
    """An example as a row of groups, with the responses that it has."""
    return {
        "prompt": example.prompt if isinstance(example.prompt, str) else list(example.prompt),
        "completions": [r.text for r in example.responses],
        "sources": [r.source for r in example.responses],
        "rewards": [r.reward for r in example.responses],
        "solution": example.solution,
        "data_source": example.data_source,
    }
