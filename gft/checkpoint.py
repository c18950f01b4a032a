"""A checkpoint is a transformers folder that appears whole or not at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from .policy import Policy


def save_checkpoint(policy: Policy, path: Path) -> Path:
    """Write model and tokenizer beside `path`, then put them in its place.

    They are flushed to the disk before the renames, so that a power cut does not leave empty files
    under the right name. An older folder is removed last: until then one whole checkpoint exists.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh, old = path.with_name(path.name + ".saving"), path.with_name(path.name + ".old")
    if old.exists() and not path.exists():
        old.rename(path)  # an earlier save ended between its two renames
    for stale in (fresh, old):
        shutil.rmtree(stale, ignore_errors=True)
    policy.model.save_pretrained(fresh)
    policy.tokenizer.save_pretrained(fresh)
    for entry in (*fresh.rglob("*"), fresh):
        _flush(entry)
    if path.exists():
        path.rename(old)
    fresh.rename(path)
    _flush(path.parent)
    shutil.rmtree(old, ignore_errors=True)
    return path


def _flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
