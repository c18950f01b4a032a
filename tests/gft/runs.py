"""Short runs of the loop on eight prompts, and their gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor

from gft.checkpoint import newest_whole
from gft.config import EMBEDDED, TrainConfig
from gft.data.files import Example
from gft.demo import sort_letters
from gft.demo.base_model import tokenizer, untrained
from gft.evaluate import Accuracy
from gft.groups import Batch, make_batch
from gft.metrics import MetricsLog, read_metrics
from gft.parts import GroupConfig
from gft.policy import Policy, load_policy, make_policy
from gft.record import read_record
from gft.reference import Reference
from gft.report import Progress
from gft.rewards.pool import RewardPool
from gft.train import train

EXAMPLES = sort_letters.examples(8, seed=0)


def config(**changes) -> TrainConfig:
    """Two steps of three groups, each with one expert, three teachers and two own responses."""
    return replace(
        EMBEDDED, **{"objective": "gft", "steps": 2, "prompts_per_step": 3, "group": GroupConfig(1, 3, 2), **changes}
    )


def fixed_batch(policy: Policy, rewards: RewardPool, settings: TrainConfig) -> Batch:
    """A step whose last group is flat."""
    torch.manual_seed(0)
    batch = make_batch(policy, EXAMPLES[:3], settings, rewards)
    for m in batch.members:
        if m.group == 2:
            m.advantage = 0.0
    return batch


def gradients(policy: Policy) -> dict[str, Tensor]:
    """Copies of the gradients by name; the model's own are cleared."""
    out = {n: p.grad.clone() for n, p in policy.model.named_parameters()}
    policy.model.zero_grad()
    return out


def response_logprobs(policy: Policy, prompt: list[int], response: list[int]) -> Tensor:
    """[tokens] log p of a response, from the model's own logits."""
    logits = policy.model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1)[range(len(response)), response]


def run(
    policy: Policy,
    rewards: RewardPool,
    out: Path,
    settings: TrainConfig,
    held_out: Sequence[Example] = (),
    start: Path | None = None,
    reference: Reference | None = None,
) -> tuple[tuple[Accuracy | None, Accuracy | None], list[dict]]:
    """Train in the folder `out`; returns what `train` does, and the rows of metrics.jsonl."""
    settings = replace(settings, out=out)
    with MetricsLog(out / "metrics.jsonl") as log, Progress("t", settings.steps, Console(quiet=True)) as progress:
        result = train(policy, EXAMPLES, held_out, settings, rewards, log, progress, start, reference)
    return result, read_metrics(out / "metrics.jsonl")


def resume(
    rewards: RewardPool, out: Path, settings: TrainConfig, held_out: Sequence[Example] = ()
) -> tuple[tuple[Accuracy | None, Accuracy | None], list[dict]]:
    """Go on with the run in the folder `out`, as `gft train --resume` does."""
    record = read_record(out)
    assert record is not None
    start = newest_whole(out, record["run"], lambda text: None)
    policy = load_policy(start / "model") if start else make_policy(untrained(0).eval(), tokenizer())
    return run(policy, rewards, out, replace(settings, resume=True), held_out, start)


def numbers(rows: list[dict]) -> list[dict]:
    """Rows of metrics.jsonl without what a clock or the system measured."""
    measured = ("seconds", "tokens_per_second", "peak_memory_mib")
    return [{name: value for name, value in row.items() if not name.startswith(measured)} for row in rows]


def weights(folder: Path) -> dict[str, bytes]:
    """The bits of a saved model's weights."""
    return {name: value.numpy().tobytes() for name, value in load_file(folder / "model.safetensors").items()}


def head_weight(policy):
    return policy.model.get_output_embeddings().weight
