"""Runs tests on a copy of gft_kernels in a process forked from one that has imported everything
else: an import of torch takes seconds, a fork milliseconds.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
# What the tests import besides gft_kernels, which each child takes from its own folder. None of these
# starts a thread, given the one CPU thread of tests/conftest.py: a fork would not copy it.
IMPORTED = ["torch", "torch._dynamo", "triton.runtime.interpreter", "hypothesis", "pytest"]
OPTIONS = ["-x", "-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT)]

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(IMPORTED)


class Answer(NamedTuple):
    code: int | None  # pytest's exit code; None where the process died first or ran out of time
    output: str


def copy_package(folder: Path) -> Path:
    """The package's copy in `folder`, without bytecode, which could hide a fault planted within a second."""
    ignored = shutil.ignore_patterns("__pycache__")
    return Path(shutil.copytree(ROOT / "gft_kernels", folder / "gft_kernels", ignore=ignored))


def run_tests(folder: Path, tests: list[str], seconds: float) -> Answer:
    """Pytest's answer to `tests` of this tree, with the gft_kernels that lies in `folder`."""
    (folder / "output").touch()
    answers, sender = SERVER.Pipe(duplex=False)
    process = SERVER.Process(target=_child, args=(sender, folder, tests))
    process.start()
    sender.close()
    try:
        code = answers.recv() if answers.poll(seconds) else None
        end = "" if code is not None else f"\nstill running after {seconds:.0f} s"
    except EOFError:
        process.join()
        code, end = None, f"\nthe process ended with {process.exitcode}"
    finally:
        process.kill()
        process.join()
    return Answer(code, (folder / "output").read_text() + end)


def _child(sender: Connection, folder: Path, tests: list[str]) -> None:
    output = os.open(folder / "output", os.O_WRONLY)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(folder)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # their import takes longer than most of the tests
    sys.path.insert(0, str(folder))
    import gft_kernels  # before pytest puts the tree, and with it the unharmed package, first

    assert Path(gft_kernels.__file__).is_relative_to(folder), gft_kernels.__file__
    code = pytest.main([*OPTIONS, *(str(ROOT / test) for test in tests)])
    sys.stdout.flush()  # the answer is the last that is heard of this process
    sender.send(int(code))
