"""Checkpoints: all that a run needs to go on, in a folder that appears whole or not at all.

checkpoint-40/model/                  a transformers folder, model and tokenizer; with LoRA
checkpoint-40/adapter/                in its place: PEFT's folder
checkpoint-40/optimizer.safetensors   the moments of AdamW; a folder optimizer/ under FSDP2: see moments.py
checkpoint-40/state.json              see state.py; of rank 1: state-1.json
checkpoint-40/manifest.json           the run, the step, and size and hash of every file; written last
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .config import TrainConfig
from .data.files import Example
from .distributed import gather, on_first, rank, world_size
from .folders import FRESH, OLD, flush, remove, retire, whole_folder
from .lora import save_adapter, save_merged
from .moments import load_moments, save_moments
from .parallel import whole_state
from .policy import Policy
from .state import RunState, random_state, set_random_state

MODEL, ADAPTER, STATE, MANIFEST = "model", "adapter", "state{}.json", "manifest.json"
ADAM = 3  # a checkpoint's size in weights: the weights themselves, and two moments of each


@dataclass
class Checkpoints:
    """The checkpoints of one run in its folder; `run` is the name that run.json gives it."""

    folder: Path
    run: str
    policy: Policy
    optimizer: torch.optim.Optimizer
    examples: Sequence[Example]
    keep: int = 0  # so many of the newest; 0: all

    def save(self, state: RunState) -> Path:
        """Write the checkpoint of the last whole update, then remove what is not to be kept.

        Raises:
            OSError: it cannot be written. The older ones stand.
        """
        path = self.folder / f"checkpoint-{state.step}"
        states = gather(state.as_json(self.examples))
        weights = whole_state(self.policy.model)
        on_first(lambda: _refuse_without_room(self.folder, ADAM * _size(self.policy)))
        with ExitStack() as stack:
            fresh = on_first(lambda: stack.enter_context(whole_folder(path)))
            save_moments(self.policy.model, self.optimizer, fresh)
            on_first(lambda: self._fill(fresh, weights, states))
            on_first(stack.pop_all().close)
        on_first(self._prune)
        return path

    def _fill(self, fresh: Path, weights: dict[str, Tensor] | None, states: Sequence[dict[str, Any]]) -> None:
        """What rank 0 writes: everything but shares of moments, the manifest last."""
        if self.policy.adapter is None:
            _save_model(self.policy, fresh / MODEL, weights)
        else:
            save_adapter(self.policy.adapter, fresh / ADAPTER)
        for place, state in enumerate(states):
            _state_file(fresh, place).write_text(json.dumps(state))
        files = {str(p.relative_to(fresh)): _measure(p) for p in sorted(fresh.rglob("*")) if p.is_file()}
        manifest = {"run": self.run, "step": states[0]["step"], "files": files}
        (fresh / MANIFEST).write_text(json.dumps(manifest, indent=1))

    def restore(self, path: Path, say: Callable[[str], None]) -> RunState:
        """Put optimiser and random numbers back; the policy is that of `path` already.

        Rollouts and random streams are a rank's own. Where a run goes on with another number of
        ranks they are drawn anew, which `say` is told of.
        """
        load_moments(self.policy.model, self.optimizer, path)
        count = len(list(path.glob(STATE.format("*"))))
        own = _state_file(path, rank() if count == world_size() else 0)
        state = RunState.from_json(json.loads(own.read_text()), self.examples)
        if count == world_size():
            set_random_state(state.random, self.policy.device)
        else:
            say(f"{path.name} is of {count} processes, and there are {world_size()}: samples differ from here on")
            torch.manual_seed(torch.initial_seed() + state.step)  # this rank's, and not its first samples again
            state.in_use, state.random = None, random_state(self.policy.device)
        return state

    def publish(self, path: Path) -> Path:
        """Make the weights of a checkpoint the run's `model`: the same files, if the system can.

        With LoRA they are its `adapter`. Its `model` is written, and is that of the policy, which
        must be the one of the checkpoint.
        """
        for name in (MODEL, ADAPTER):
            if (path / name).exists():
                with whole_folder(self.folder / name) as fresh:
                    shutil.copytree(path / name, fresh, copy_function=_link, dirs_exist_ok=True)
        if self.policy.adapter is not None:
            with whole_folder(self.folder / MODEL) as fresh:
                _save_model(self.policy, fresh, None)
        return self.folder / MODEL

    def _prune(self) -> None:
        """Remove all but the newest of this run, and what is left of saves that were killed."""
        found = list(written_by(self.folder, self.run))
        for path in found[self.keep :] if self.keep else ():
            retire(path)
        _sweep(self.folder)


def _sweep(folder: Path) -> None:
    """Remove what is left of saves that were killed."""
    for role in (FRESH, OLD):
        for path in folder.glob(f".checkpoint-*.{role}"):
            remove(path)


def newest_whole(folder: Path, run: str, say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint of a run that is as it was written; None if there never was one.

    Every file is read. `say` is told of those that are damaged.

    Raises:
        ValueError: there are checkpoints, and all of them are damaged.
    """
    # Every folder of that name had its manifest when it got the name.
    faults = {path: f"{MANIFEST} cannot be read" for path in folder.glob("checkpoint-*") if not _manifest(path)}
    whole = None
    for path in written_by(folder, run):
        fault = _fault(path)
        if fault is None:
            whole = path
            break
        if not path.name.startswith("."):  # else a save that never ended
            faults[path] = fault
    for path, fault in faults.items():
        say(f"{path} is damaged ({fault}) and passed over")
    if whole is not None and whole.name.startswith("."):
        whole = _adopt(whole)
    if faults and whole is None:
        names = ", ".join(path.name for path in faults)
        raise ValueError(f"{folder}: every checkpoint is damaged ({names}): restore one, or begin anew.")
    _sweep(folder)  # their room is the next save's
    return whole


def _adopt(path: Path) -> Path:
    """Give a whole folder the name that it was saved for; what has that name is damaged, if any."""
    target = path.with_name(path.name.removeprefix(".").rpartition(".")[0])
    remove(target)
    path.rename(target)
    flush(path.parent)
    return target


def written_by(folder: Path, run: str) -> Iterator[Path]:
    """Checkpoints of a run that were finished, newest first.

    A save that was killed between its renames leaves one whole folder or two with hidden names.
    """
    found = []
    for pattern in ("checkpoint-*", f".checkpoint-*.{FRESH}", f".checkpoint-*.{OLD}"):
        for path in folder.glob(pattern):
            manifest = _manifest(path)
            if manifest.get("run") == run:
                found.append((manifest["step"], not path.name.startswith("."), path))
    return (path for _, _, path in sorted(found, reverse=True))


def save_model(policy: Policy, path: Path) -> Path:
    """Write model and tokenizer to a folder, which appears whole or not at all. All ranks call it.

    Raises:
        OSError: it cannot be written.
    """
    weights = whole_state(policy.model)

    def write() -> Path:
        with whole_folder(Path(path)) as fresh:
            _save_model(policy, fresh, weights)
        return Path(path)

    return on_first(write)


def check_space(policy: Policy, config: TrainConfig) -> None:
    """Refuse a run whose checkpoints have no room, before it has anything to lose.

    There are never more of them than are kept, and a new one. Those that are there need no room.

    Raises:
        OSError: they are larger than what is free.
    """
    saves = len(config.saved_steps()) + 1
    count = max(2, min(saves, config.keep + 1) if config.keep else saves)
    if config.resume:
        count = max(1, count - len(list(config.out.glob("checkpoint-*"))))
    size, free = ADAM * _size(policy), _free(config.out)
    merged = 0 if policy.adapter is None else _size(policy, whole=True)
    if count * size + merged > free:
        model = f" and for a model of {merged / 2**30:.3g} GiB" if merged else ""
        raise OSError(
            f"{config.out}: the run needs room for {count} checkpoints of {size / 2**30:.3g} GiB{model}, and "
            f"{free / 2**30:.3g} GiB are free: make room, give another --out, or keep fewer (--keep)."
        )


def _state_file(folder: Path, place: int) -> Path:
    return folder / STATE.format(f"-{place}" if place else "")


def _save_model(policy: Policy, folder: Path, weights: dict[str, Tensor] | None) -> None:
    """Of a sharded model, which rank 0 holds a part of, its gathered `weights`."""
    if policy.adapter is not None:
        save_merged(policy.model, folder)
    elif weights is None:
        policy.model.save_pretrained(folder)
    else:
        policy.model.save_pretrained(folder, state_dict=weights)
    policy.tokenizer.save_pretrained(folder)
    # A server of the model should stop where the loop's samples did: at a chat's end of turn too.
    generation = copy.deepcopy(policy.model.generation_config)
    generation.eos_token_id = sorted(policy.end_tokens)
    generation.save_pretrained(folder)


def _refuse_without_room(folder: Path, size: int) -> None:
    if size > (free := _free(folder)):  # at once, and not after minutes of writing
        raise OSError(f"{folder}: a checkpoint takes {size / 2**20:.3g} MiB, and {free / 2**20:.3g} MiB are free")


def _size(policy: Policy, *, whole: bool = False) -> int:
    """Bytes of the weights that are trained, or of all."""
    return sum(p.numel() * p.element_size() for p in policy.model.parameters() if p.requires_grad or whole)


def _free(folder: Path) -> int:
    existing = next(f for f in (folder, *folder.absolute().parents) if f.exists())
    return shutil.disk_usage(existing).free


def _measure(path: Path) -> list[Any]:
    """Size and hash of a file."""
    with path.open("rb") as file:
        return [path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()]


def _manifest(path: Path) -> dict[str, Any]:
    try:
        found = json.loads((path / MANIFEST).read_text())
        return found if found.keys() >= {"run", "step", "files"} else {}
    except (OSError, ValueError, AttributeError):  # not finished, damaged, or a user's own
        return {}


def _fault(path: Path) -> str | None:
    """What is wrong with a checkpoint; None if it is whole."""
    for name, expected in _manifest(path)["files"].items():
        try:
            found = _measure(path / name)
        except OSError as error:
            return f"{name}: {error.strerror}"
        if found != expected:
            return f"{name} has {found[0]} bytes of {expected[0]}" if found[0] != expected[0] else f"{name} has changed"
    return None


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)
