"""Folders that appear whole or not at all, whenever the process is killed or the disk is full."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ..stop import held

FRESH, OLD = "saving", "replaced"  # what a folder is while it is written, and while it is removed


def hidden(path: Path, role: str) -> Path:
    """The name beside `path` that a folder has in that role. A user's copy would hardly have it."""
    return path.with_name(f".{path.name}.{role}")


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to write into, which takes the place of `path` once the block has ended well.

    It is flushed to the disk before the renames, so that a power cut does not leave empty files
    under the right name. An older folder is removed last: until then one whole folder exists. A
    signal waits until all this is done.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh, old = hidden(path, FRESH), hidden(path, OLD)
    with held():
        if old.exists() and not path.exists():
            old.rename(path)  # an earlier save ended between its two renames
        for stale in (fresh, old):
            remove(stale)
        try:
            fresh.mkdir()
            yield fresh
            for entry in (*fresh.rglob("*"), fresh):
                flush(entry)
        except BaseException as error:
            remove(fresh)  # on a full disk, what is left over takes the room of the next one
            if isinstance(error, SafetensorError):  # it is no OSError there
                raise OSError(f"{path} cannot be written: {error}") from error
            raise
        if path.is_symlink() or path.exists():
            path.rename(old)
        fresh.rename(path)
        flush(path.parent)
        remove(old)


def write_whole(path: Path, text: str) -> None:
    """Write a file that is there whole or as it was before."""
    fresh = hidden(path, FRESH)
    with held():
        try:
            fresh.write_text(text, encoding="utf-8")
            flush(fresh)
            fresh.rename(path)
        finally:
            fresh.unlink(missing_ok=True)
        flush(path.parent)


def remove(path: Path) -> None:
    """Remove a folder, or a link to one, whose target is not ours to remove."""
    if path.is_symlink():
        path.unlink()
    shutil.rmtree(path, ignore_errors=True)


def retire(path: Path) -> None:
    """Remove a whole folder so that no part of it is ever taken for one."""
    old = hidden(path, OLD)
    remove(old)
    path.rename(old)
    remove(old)


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
