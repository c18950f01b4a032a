"""The folder of a run: refused where something lies in it, and locked for as long as the run lasts.

Whatever stands in a used folder may be all that is left of a long run, so nothing is written there
without --resume or --overwrite. A run that is refused leaves its folder as it was, or without one.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from .config import TrainConfig
from .folders import FRESH, hidden
from .options import OptionError
from .record import RECORD, check_same_options, read_record

LOCK = ".lock"
NAMES_SHOWN = 5


@contextmanager
def run_folder(config: TrainConfig, say: Callable[[str], None]) -> Iterator[None]:
    """Make the folder of a run and lock it; `say` is told what --overwrite will meet there.

    Raises:
        OptionError: it cannot be written, it is used and neither --resume nor --overwrite was
            given, it holds another run than the one to resume, another run writes there, or the
            model or the data lie in it.
    """
    if config.resume and config.overwrite:
        raise OptionError("--resume goes on with what --overwrite replaces: give one of them.")
    _check_apart(config)
    path = config.out
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    lock = None
    try:
        lock = _locked(path)
        found = contents(path)
        record = read_record(path) if config.resume else None
        if record is not None:
            check_same_options(config, record)
        elif found and not config.overwrite:
            if config.resume:
                raise OptionError(f"--out {path} holds {found}, and no {RECORD}: there is no run to resume.")
            going_on = ", --resume to go on with the run" if (path / RECORD).exists() else ""
            raise OptionError(
                f"--out {path} holds {found}: give another folder{going_on}, or --overwrite to replace what this run "
                "writes."
            )
        elif config.resume:
            say(f"{path} holds no run: a new one begins")
        elif found:
            say(f"{path} holds {found}: what this run writes is replaced, the rest stays")
        yield
    finally:
        if lock is not None:
            (path / LOCK).unlink(missing_ok=True)
            lock.close()  # which releases it; if the process is killed, the system does
        for folder in made:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def contents(path: Path) -> str:
    """What lies in a folder, in words: "metrics.jsonl, model/ and 3 more". "" if it is empty."""
    names = sorted(
        entry.name + "/" * entry.is_dir()
        for entry in path.iterdir()
        if entry.name not in (LOCK, hidden(path / RECORD, FRESH).name)
    )
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _check_apart(config: TrainConfig) -> None:
    """Refuse a run that would write over what it reads, or into the model's folder."""
    out = config.out.resolve()
    for option, given in (
        ("--model", config.model),
        ("--reference", config.reference),
        ("--data", config.data),
        ("--eval-data", config.eval_data),
    ):
        if given is None or str(given).startswith("rg:"):
            continue
        source = Path(given).resolve()
        if out == source or out in source.parents:
            raise OptionError(f"{option} {given} lies in --out {config.out}, where the run writes: give another --out.")
        if option == "--model" and source in out.parents:
            raise OptionError(f"--out {config.out} lies in --model {given}: give another --out.")


def _locked(path: Path) -> TextIO:
    """The lock of a folder, which is made for it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        file = (path / LOCK).open("a")
    except OSError as error:
        what = "is no folder" if path.exists() and not path.is_dir() else f"cannot be written: {error.strerror}"
        raise OptionError(f"--out {path} {what}. Give another folder.") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        busy = os.fstat(file.fileno()).st_nlink == 0  # its run has just ended, and removed it
    except BlockingIOError:
        busy = True
    except OSError:
        busy = False  # some file systems have no locks; what the folder holds is still looked at
    if busy:
        file.close()
        raise OptionError(f"--out {path} is in use: another run is writing there. Give another folder.")
    return file
