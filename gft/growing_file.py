"""A file that grows by whole rows, and goes on after any end with the bytes of one run.

groups.jsonl        the rows, each on a line
groups.jsonl.run    what they are made of: whoever goes on must say the same
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from .folders import write_whole
from .options import OptionError, option


class GrowingFile:
    """Rows of JSON, of which `done` are there."""

    def __init__(self, file: BinaryIO, done: int) -> None:
        self.file, self.done = file, done

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        """Append rows. They are on the disk when this returns.

        Raises:
            OSError: no room. What was written of them is cut off when the file is opened again.
        """
        self.file.write(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
        self.file.flush()
        os.fsync(self.file.fileno())
        self.done += len(rows)


@contextmanager
def growing_file(
    path: Path, made_of: dict[str, Any], at_once: int, count: int, *, resume: bool, overwrite: bool
) -> Iterator[GrowingFile]:
    """Open a file of `count` rows, which come `at_once`; `made_of` is what the rows depend on.

    A row that is torn, and the rows that came with it, are cut off: they are made again.

    Raises:
        OptionError: the file is used and neither --resume nor --overwrite is given, it is made of
            something else, another run writes it, or it cannot be written.
    """
    if resume and overwrite:
        raise OptionError("--resume goes on with what --overwrite replaces: give one of them.")
    path.parent.mkdir(parents=True, exist_ok=True)
    beside, made_of = path.with_name(path.name + ".run"), json.loads(json.dumps(made_of))
    try:
        file = path.open("a+b")
    except OSError as error:
        raise OptionError(f"--out {path} cannot be written: {error.strerror}. Give another file.") from error
    with file:
        _lock(file, path)
        size = file.seek(0, os.SEEK_END)
        if size and not (resume or overwrite):
            raise OptionError(f"--out {path} is not empty: give another file, --resume to go on, or --overwrite.")
        done = length = 0
        if size and resume:
            _check_same(beside, made_of, path)
            done, length = _whole_rows(file, at_once, count)
        else:
            write_whole(beside, json.dumps(made_of, indent=1) + "\n")
        file.truncate(length)
        yield GrowingFile(file, done)


def _lock(file: BinaryIO, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OptionError(f"--out {path} is in use: another run is writing it. Give another file.") from error
    except OSError:
        pass  # some file systems have no locks


def _check_same(beside: Path, made_of: dict[str, Any], path: Path) -> None:
    """Refuse to go on with rows that are made of something else."""
    try:
        found = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OptionError(
            f"--resume needs {beside}, which says what the rows of {path} are made of: {error}"
        ) from error
    for name in {**made_of, **found}:
        if made_of.get(name) != found.get(name):
            raise OptionError(
                f"{option(name)} is {made_of.get(name)}, and was {found.get(name)} when {path} began: give the same, "
                "or another --out."
            )


def _whole_rows(file: BinaryIO, at_once: int, count: int) -> tuple[int, int]:
    """(rows, bytes) that stand: those of whole batches, or all of them."""
    file.seek(0)
    ends, position = [0], 0
    for line in file:
        position += len(line)
        if line.endswith(b"\n"):
            ends.append(position)
    rows = len(ends) - 1
    if rows < count:
        rows -= rows % at_once
    return rows, ends[rows]
