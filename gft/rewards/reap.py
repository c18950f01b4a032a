"""Ends what a worker's reward function has started, in whatever session it hides."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

MARK = "GFT_REWARD_WORKER"  # in the environment of a worker, and so of its children and theirs


def end_marked(mark: str) -> None:
    """Kill every process but this one that was started with this mark in its environment.

    The kill of a worker's group misses children that have a session of their own. One that was
    started with an empty environment is not found; nor is any where there is no /proc.
    """
    wanted = f"{MARK}={mark}".encode()
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it has ended, or belongs to another user
            pid = int(environment.parent.name)
            if pid != os.getpid() and wanted in environment.read_bytes().split(b"\0"):
                os.kill(pid, signal.SIGKILL)
