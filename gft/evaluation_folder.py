"""The folder of `gft eval --out`: samples.jsonl, and eval.json, which says what they answer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from .config import EvaluateConfig
from .data.files import Example
from .estimates import Estimate
from .evaluate import Accuracy
from .folders import write_whole
from .held_out import SAMPLES
from .options import OptionError, option
from .policy import Policy
from .record import data_hash, made_with
from .run import contents

RECORD = "eval.json"
VALUES_READ = 512  # of a weight, for the model's fingerprint
WORDS = {"model": "the weights of --model are others", "data": "the prompts of --data and --prompts are others"}


def open_evaluation(config: EvaluateConfig, policy: Policy, examples: Sequence[Example]) -> None:
    """Write eval.json, or hold it to the evaluation that goes on.

    Raises:
        OptionError: the folder holds something else, or another evaluation.
    """
    assert config.out is not None
    asked = identity(config, policy, examples)
    path = config.out / RECORD
    if path.exists():
        _check_same(config.out, asked, read_evaluation(config.out)["identity"])
        return
    try:
        config.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(f"--out {config.out} cannot be made: {error.strerror}. Give another folder.") from error
    if found := contents(config.out):
        raise OptionError(f"--out {config.out} holds {found}, and no {RECORD}: give another folder.")
    record = {"identity": asked, "name": str(config.model), "made_with": made_with(policy.device)}
    write_whole(path, json.dumps(record, indent=1) + "\n")


def finish(out: Path, accuracy: Accuracy, kl: dict[str, Estimate]) -> None:
    """Add the numbers to eval.json."""
    means = {name: None if value != value else value for name, value in accuracy._asdict().items()}
    intervals = {name: list(found) if found.low == found.low else [found.value] for name, found in kl.items()}
    record = read_evaluation(out) | {"accuracy": means}
    if kl:
        record["kl"] = intervals
    write_whole(out / RECORD, json.dumps(record, indent=1) + "\n")


def read_evaluation(out: Path) -> dict[str, Any]:
    """eval.json of a folder.

    Raises:
        OptionError: it cannot be read.
    """
    try:
        found = json.loads((out / RECORD).read_text(encoding="utf-8"))
        return {**found, "identity": dict(found["identity"])}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise OptionError(f"{out / RECORD} cannot be read ({type(error).__name__}: {error}).") from error


def identity(config: EvaluateConfig, policy: Policy, examples: Sequence[Example]) -> dict[str, Any]:
    """All that the answers depend on."""
    options = ("samples", "temperature", "max_new_tokens", "batch", "seed")
    return {
        "model": fingerprint(policy.model),
        "data": data_hash(examples),
        "reward": config.reward_name(),
        "reward_seconds": config.limits.reward_seconds,
        "reward_memory": config.limits.reward_memory,
        **{name: getattr(config, name) for name in options},
    }


@torch.no_grad()
def fingerprint(model: PreTrainedModel) -> str:
    """A hash of some values of every weight: another step of training has another one."""
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        flat = weight.detach().flatten()
        some = flat[:: max(1, flat.numel() // VALUES_READ)].float().cpu()
        digest.update(f"{name} {tuple(weight.shape)}".encode() + some.numpy().tobytes())
    return digest.hexdigest()


def _check_same(out: Path, asked: dict[str, Any], own: dict[str, Any]) -> None:
    for name, value in asked.items():
        if own.get(name) != value:
            what = WORDS.get(name, f"{option(name)} is {value}, and was {own.get(name)}")
            raise OptionError(f"{what}: {out / SAMPLES} holds the answers of another evaluation. Give another --out.")
