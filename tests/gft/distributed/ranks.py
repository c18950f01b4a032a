"""The processes of one run, forked from this one, which has imported everything."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import torch

from ..faults.harness import Ended, live

RANKS = 2
SECONDS = 60  # of a scenario: most take two


def ranks(work: Callable[[int], None], folder: Path, count: int = RANKS) -> list[Ended]:
    """`work(rank)` in so many processes, with the environment that torchrun gives them."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    logs = [folder / f"rank{rank}.log" for rank in range(count)]
    children = [_start(work, rank, count, port, log) for rank, log in enumerate(logs)]
    codes: dict[int, int] = {}
    deadline = time.monotonic() + SECONDS
    while len(codes) < count and time.monotonic() < deadline:
        for child in set(children) - set(codes):
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                codes[child] = os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    for child in set(children) - set(codes):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    texts = [log.read_text() for log in logs]
    assert len(codes) == count, "\n".join([f"{codes}, still running after {SECONDS} s", *texts])
    return [Ended(codes[child], text) for child, text in zip(children, texts, strict=True)]


def _start(work: Callable[[int], None], rank: int, count: int, port: int, log: Path) -> int:
    child = os.fork()
    if child == 0:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
        os.environ |= {name: str(value) for name, value in place.items()}
        os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
        torch.set_num_threads(1)
        live(lambda: work(rank), log)
    return child
