"""run.json: what a run is, so that it can be gone on with, and nothing else be taken for it.

It has the run's configuration, a name of its own that its checkpoints carry, hashes of the data,
and the versions and the commit that it was made with.
"""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers

import gft_kernels

from .config import TrainConfig
from .data.files import Example
from .distributed import world_size
from .folders import write_whole
from .options import OptionError, option
from .parts import EvalConfig, GroupConfig, ModelConfig, OptimConfig, ReuseConfig, RewardLimits, SamplingConfig

RECORD = "run.json"
PARTS = {
    "limits": RewardLimits,
    "group": GroupConfig,
    "reuse": ReuseConfig,
    "sampling": SamplingConfig,
    "optim": OptimConfig,
    "network": ModelConfig,
    "evaluate": EvalConfig,
}
PATHS = ("recipe", "model", "reference", "out")
# Options that change no number of a run.
FREE = {
    *("recipe", "out", "resume", "overwrite", "save_every", "keep", "parallel", "log_to"),
    *("evaluate.eval_answers", "limits.reward_workers"),
}


def open_record(
    config: TrainConfig,
    device: torch.device,
    examples: Sequence[Example],
    held_out: Sequence[Example],
    say: Callable[[str], None],
) -> str:
    """Write run.json, or hold it to the run that goes on; returns the run's name.

    Raises:
        OptionError: the data or an option is another than that of the run.
    """
    data = {"data": data_hash(examples), "held_out": data_hash(held_out)}
    found = read_record(config.out) if config.resume else None
    if found is None:
        run = uuid.uuid4().hex
        record = {"run": run, "seed": config.seed, **data, "made_with": made_with(device), "config": as_json(config)}
        config.out.mkdir(parents=True, exist_ok=True)
        write_whole(config.out / RECORD, json.dumps(record, indent=1) + "\n")
        return run
    check_same_options(config, found)
    for name, value in data.items():
        if found[name] != value:
            what = "--data" if name == "data" or config.eval_data is None else "--eval-data"
            raise OptionError(
                f"{what} has changed since the run in {config.out} began: its hash is {value[:12]} and was "
                f"{found[name][:12]}. Give the same rows, or begin a new run."
            )
    for name, part in made_with(device).items():
        if (was := found["made_with"].get(name)) != part:
            say(f"{name} is {part} and was {was} when the run began: what follows may differ in the last bits")
    return found["run"]


def read_record(out: Path) -> dict[str, Any] | None:
    """run.json of a folder; None if there is none.

    Raises:
        OptionError: it cannot be read.
    """
    path = out / RECORD
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return found | {"config": from_json(found["config"])}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise OptionError(
            f"{path} is not what this version writes ({type(error).__name__}: {error}): the run cannot be resumed."
        ) from error


def check_same_options(config: TrainConfig, record: dict[str, Any]) -> None:
    """Refuse to go on with a run in another way than it began.

    Raises:
        OptionError: an option differs.
    """
    own = dict(flat(record["config"]))
    for name, value in flat(config):
        if name not in FREE and value != own[name]:
            raise OptionError(
                f"{option(name)} is {value}, and {own[name]} in the run that --resume goes on with: leave it out, or "
                "begin a new run in another --out."
            )


def flat(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every option of a configuration and of its parts: ("group.own", 4)."""
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            yield from flat(value, f"{field.name}.")
        else:
            yield prefix + field.name, value


def as_json(config: TrainConfig) -> dict[str, Any]:
    """A configuration as what JSON has. How the folder was opened is no part of it."""
    found = asdict(replace(config, resume=False, overwrite=False))
    return found | {name: None if found[name] is None else str(found[name]) for name in PATHS}


def from_json(found: dict[str, Any]) -> TrainConfig:
    """What `as_json` gave."""
    parts: dict[str, Any] = {name: part(**found[name]) for name, part in PARTS.items()}
    paths = {name: None if found[name] is None else Path(found[name]) for name in PATHS}
    return TrainConfig(**found | parts | paths)


def data_hash(examples: Sequence[Example]) -> str:
    """A hash of what examples hold, wherever their file lies."""
    digest = hashlib.sha256()
    for e in examples:
        rows = [e.prompt, e.solution, [[r.text, r.source, r.reward] for r in e.responses], e.data_source]
        digest.update(json.dumps(rows, default=str).encode() + b"\n")
    return digest.hexdigest()


def made_with(device: torch.device) -> dict[str, str | int]:
    """What the last bits of a number may depend on, beside the configuration."""
    return {
        "gft-kernels": gft_kernels.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device} {platform.machine()}",
        "processes": world_size(),
        "threads": torch.get_num_threads(),
    }


def _commit() -> str:
    """The commit of this checkout; "unknown" outside of one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"
    except OSError:
        return "unknown"
