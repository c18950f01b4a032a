"""Ends what a worker's reward function has started, in whatever session it hides."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

MARK = "GFT_REWARD_WORKER"  # in the environment of a worker, and so of its children and theirs
LOOKS, BETWEEN = 20, 0.005  # at processes that may be about to start a program, and seconds from one to the next

_blank: set[Path] = set()  # processes that have had no environment for so many looks: kernel threads, say


def end_marked(mark: str) -> None:
    """Kill every process but this one that was started with this mark in its environment.

    The kill of a worker's group misses children that have a session of their own. One that was
    started with an empty environment is not found; nor is any where there is no /proc.

    A process shows no environment for a moment in which it starts its program. So whoever has none
    is looked at again.
    """
    wanted = f"{MARK}={mark}".encode()
    for _ in range(LOOKS):
        blank = {process for process in Path("/proc").glob("[0-9]*") if not _look(process, wanted)}
        if not blank - _blank:
            return
        time.sleep(BETWEEN)
    _blank.update(blank)


def _look(process: Path, wanted: bytes) -> bool:
    """Kill a process that is marked; whether its environment could be seen, or it has ended."""
    with contextlib.suppress(OSError):  # it has ended, or belongs to another user
        environment = (process / "environ").read_bytes()
        if not environment:
            return (process / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"
        if int(process.name) != os.getpid() and wanted in environment.split(b"\0"):
            os.kill(int(process.name), signal.SIGKILL)
    return True
