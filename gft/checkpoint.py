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
        except SafetensorError as error:  # a full disk, which is no OSError there
            raise OSError(f"{path}: the checkpoint cannot be written: {error}") from error
        for entry in (*fresh.rglob("*"), fresh):
            _flush(entry)
        if path.is_symlink() or path.exists():
            path.rename(old)
        fresh.rename(path)
        _flush(path.parent)
        _remove(old)
    return path


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
