"""Runs of `gft train` in forked processes, in which something goes wrong at a chosen call.

Everything is imported once; a fork takes milliseconds. Signals are real ones, sent by the process
to itself before or after the nth call of a named function.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

SECONDS = 60  # of a scenario: most take one


class Ended(NamedTuple):
    code: int  # the exit code; minus the number of the signal that killed it
    output: str


def forked(work: Callable[[], None], output: Path) -> Ended:
    """`work` in a process of its own, which ends with it."""
    child = os.fork()
    if child == 0:
        live(work, output)
    deadline = time.monotonic() + SECONDS
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return Ended(os.waitstatus_to_exitcode(status), output.read_text())
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise TimeoutError(f"still running after {SECONDS} s:\n{output.read_text()}")
        time.sleep(0.005)


def live(work: Callable[[], None], output: Path) -> None:
    """The life of a forked process: `work`, then its exit code, and never the rest of the tests."""
    code = 1
    try:
        file = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, signal.SIG_DFL)
        code = _exit_code(work)
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(code)  # whatever happens, no second pytest goes on


def _exit_code(work: Callable[[], None]) -> int:
    try:
        work()
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    except BaseException:
        traceback.print_exc()
        return 99  # a traceback is no way to end
    return 0


def resolve(name: str) -> tuple[Any, str]:
    """("gft.metrics.MetricsLog.write") -> (the class, "write")."""
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        with suppress(ImportError):
            owner = import_module(".".join(parts[:length]))
            for part in parts[length:-1]:
                owner = getattr(owner, part)
            return owner, parts[-1]
    raise ImportError(name)


def trap(name: str, call: int, action: Callable[[], None], *, after: bool = False) -> None:
    """Do something before, or after, the nth call of a function, in this process for good."""
    owner, attribute = resolve(name)
    original, calls = getattr(owner, attribute), []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == call and not after:
            action()
        result = original(*args, **kwargs)
        if len(calls) == call and after:
            action()
        return result

    setattr(owner, attribute, counted)


def send(*numbers: int) -> Callable[[], None]:
    """Real signals to this process, one after the other."""

    def action() -> None:
        for number in numbers:
            os.kill(os.getpid(), number)
            signal.getsignal(signal.SIGTERM)  # a line for the handler to run at

    return action
