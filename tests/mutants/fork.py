"""Runs tests on a copy of the packages in a process forked from one that has imported everything
else: an import of torch takes seconds, a fork milliseconds.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("gft_kernels", "gft")
# What the tests import besides PACKAGES, which each fork takes from its own folder. None starts a
# thread, given the one CPU thread of tests/conftest.py: a fork would not copy it.
IMPORTED = ("torch", "torch._dynamo", "triton.runtime.interpreter", "hypothesis", "transformers", "peft")
OPTIONS = ["-x", "-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT)]

SPAWN, FORK = multiprocessing.get_context("spawn"), multiprocessing.get_context("fork")


class Answer(NamedTuple):
    code: int | None  # pytest's exit code; None where the process died first or ran out of time
    output: str


RunTests = Callable[[Path, list[str], float], Answer]  # folder of the copy, tests of this tree, seconds at most


def copy_packages(folder: Path) -> Path:
    """`folder` with copies of the packages, without bytecode, which could hide a fault."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@contextmanager
def process_to_fork() -> Iterator[RunTests]:
    """A process of its own, not the standard library's fork server: there is one of that, and the
    benchmarks fill it with gft_kernels.
    """
    ours, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=_serve, args=(theirs,))
    process.start()
    theirs.close()

    def run_tests(folder: Path, tests: list[str], seconds: float) -> Answer:
        ours.send((folder, tests, seconds))
        return ours.recv()

    try:
        yield run_tests
    finally:
        ours.close()
        process.join()


def _serve(requests: Connection) -> None:
    for name in IMPORTED:
        importlib.import_module(name)
    while True:
        try:
            request = requests.recv()
        except EOFError:
            return
        requests.send(_answer(*request))


def _answer(folder: Path, tests: list[str], seconds: float) -> Answer:
    (folder / "output").touch()
    answers, sender = FORK.Pipe(duplex=False)
    process = FORK.Process(target=_run, args=(sender, folder, tests))
    process.start()
    sender.close()
    try:
        code = answers.recv() if answers.poll(seconds) else None
        end = "" if code is not None else f"\nstill running after {seconds:.0f} s"
    except EOFError:
        process.join()
        code, end = None, f"\nthe process ended with {process.exitcode}"
    process.kill()
    process.join()
    return Answer(code, (folder / "output").read_text() + end)


def _run(sender: Connection, folder: Path, tests: list[str]) -> None:
    output = os.open(folder / "output", os.O_WRONLY)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(folder)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # their import takes longer than most of the tests
    sys.path.insert(0, str(folder))
    for package in PACKAGES:  # before pytest puts the tree, and with it the unharmed packages, first
        path = importlib.import_module(package).__file__
        assert Path(path or "/").is_relative_to(folder), path
    code = pytest.main([*OPTIONS, *(str(ROOT / test) for test in tests)])
    sys.stdout.flush()  # the answer is the last that is heard of this process
    sender.send(int(code))
