"""A function of each of many names, every call in a process of its own that a time limit ends."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

# A fork has torch and transformers imported already, and a crash or a hang in it ends nothing else.
FORK = multiprocessing.get_context("fork")


def each(function: Callable[[str], Any], names: Sequence[str], workers: int, limit: float) -> Iterator[tuple[str, Any]]:
    """(name, function(name)) as they are ready; a RuntimeError in its place where there is none."""
    waiting = list(reversed(names))
    running: dict[Connection, tuple[str, Any, float]] = {}
    while waiting or running:
        while waiting and len(running) < workers:
            name = waiting.pop()
            ours, theirs = FORK.Pipe(duplex=False)
            process = FORK.Process(target=_call, args=(function, name, theirs))
            process.start()
            theirs.close()
            running[ours] = (name, process, time.monotonic() + limit)
        ready = wait(list(running), timeout=0.5)
        for pipe, (name, process, until) in list(running.items()):
            if pipe not in ready and time.monotonic() < until:
                continue
            try:
                result = pipe.recv() if pipe in ready else RuntimeError(f"it took more than {limit:.0f} s")
            except EOFError:
                result = RuntimeError("its process died")
            process.kill()
            process.join()
            del running[pipe]
            yield name, result


def _call(function: Callable[[str], Any], name: str, pipe: Connection) -> None:
    try:
        result = function(name)
    except Exception as error:
        result = RuntimeError(f"{type(error).__name__}: {error}".splitlines()[0])
    pipe.send(result)
