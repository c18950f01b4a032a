"""A checkpoint is a transformers folder that appears whole or not at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from safetensors import SafetensorError

from .policy import Policy
from .stop import undisturbed


def save_checkpoint(policy: Policy, path: Path) -> Path:
    """Write model and tokenizer beside `path`, then put them in its place.

    They are flushed to the disk before the renames, so that a power cut does not leave empty files
    under the right name. An older folder is removed last: until then one whole checkpoint exists. A
    signal waits until all this is done.

    Raises:
        OSError: it cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # What is found under these names is removed. A user's own copy would hardly have a hidden one.
    fresh, old = path.with_name(f".{path.name}.saving"), path.with_name(f".{path.name}.replaced")
    with undisturbed():
        if old.exists() and not path.exists():
            old.rename(path)  # an earlier save ended between its two renames
        for stale in (fresh, old):
            _remove(stale)
        try:
            policy.model.save_pretrained(fresh)
            policy.tokenizer.save_pretrained(fresh)
            for entry in (*fresh.rglob("*"), fresh):
                _flush(entry)
        except BaseException as error:
            _remove(fresh)  # on a full disk, what is left over takes the room of the next one
            if isinstance(error, SafetensorError):  # it is no OSError there
                raise OSError(f"{path}: the checkpoint cannot be written: {error}") from error
            raise
        if path.is_symlink() or path.exists():
            path.rename(old)
        fresh.rename(path)
        _flush(path.parent)
        _remove(old)
    return path


def check_space(policy: Policy, folder: Path, count: int) -> None:
    """Refuse a run whose checkpoints have no room, before it has anything to lose.

    Raises:
        OSError: `count` checkpoints are larger than what is free at `folder`.
    """
    size = sum(p.numel() * p.element_size() for p in policy.model.parameters())
    existing = next(f for f in (folder, *folder.absolute().parents) if f.exists())
    free = shutil.disk_usage(existing).free
    if count * size > free:
        raise OSError(
            f"{folder}: the run saves {count} checkpoints of {size / 2**30:.3g} GiB, and {free / 2**30:.3g} GiB are "
            "free: make room, give another --out, or save less often (--save-every)."
        )


def _remove(path: Path) -> None:
    """Remove a folder, or a link to one, whose target is not ours to remove."""
    if path.is_symlink():
        path.unlink()
    shutil.rmtree(path, ignore_errors=True)


def _flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
