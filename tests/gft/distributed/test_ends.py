"""However a run of two processes ends, both end, and what goes on from there has the same bits."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from signal import SIGKILL, SIGTERM

import pytest

from gft import cli
from gft.commands import train as run_command

from ..faults.harness import Ended, send, trap
from ..faults.tiny import command, make_inputs, outcome, steps_saved
from .ranks import RANKS, ranks

SOON = 20.0  # seconds, of which starting takes most where six runs share two cores; the patience is half an hour
EVERY = range(RANKS)


def start(arguments: list[str], prepare: Callable[[], None] = lambda: None, where: range = EVERY) -> list[Ended]:
    """`gft ...` by two processes; `prepare` lays traps in those of `where`."""
    out = Path(arguments[arguments.index("--out") + 1])

    def work(rank: int) -> None:
        run_command.run_figure = lambda rows, path: path  # drawing takes longer than the run
        if rank in where:
            prepare()
        cli.main(arguments)

    return ranks(work, out.parent)


def go_on(out: Path) -> None:
    for ended in start(["train", "--resume", "--out", str(out)]):
        assert ended.code == 0, ended.output


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("ends")
    make_inputs(path)
    return path


@pytest.fixture(scope="module")
def whole(folder):
    """Numbers and weights of the runs to which nothing happens, by --parallel."""
    for kind in ("ddp", "fsdp"):
        for ended in start(command(folder, folder / kind, "--parallel", kind)):
            assert ended.code == 0, ended.output
    return {kind: outcome(folder / kind) for kind in ("ddp", "fsdp")}


# What is sent or raised, and before which call, on which ranks, and the steps that are saved then
STOPS = {
    "SIGTERM to one in a rollout": ("gft.groups.sample", 3, range(1, 2), [2]),
    "SIGTERM to one in an update": ("gft.train.optimizer_step", 3, range(1, 2), [3, 2]),
    "SIGTERM to all in an evaluation": ("gft.evaluate.sample", 4, EVERY, [3, 2]),
}


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
@pytest.mark.parametrize("stop", STOPS)
def test_stop_is_one_of_all_and_resumes_to_the_same_bits(stop, kind, folder, whole, tmp_path):
    name, call, where, saved = STOPS[stop]
    out = tmp_path / "out"
    found = start(command(folder, out, "--parallel", kind), lambda: trap(name, call, send(SIGTERM, SIGTERM)), where)
    assert [ended.code for ended in found] == [75] * RANKS, found
    assert "".join(ended.output for ended in found).count("gft: ended by SIGTERM") == 1
    assert steps_saved(out) == saved
    go_on(out)
    assert outcome(out) == whole[kind]


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_killed_run_resumes_to_the_same_bits(kind, folder, whole, tmp_path):
    out = tmp_path / "out"
    kill = lambda: trap("gft.train.optimizer_step", 4, send(SIGKILL))  # noqa: E731
    found = start(command(folder, out, "--parallel", kind), kill)
    assert [ended.code for ended in found] == [-SIGKILL] * RANKS, found
    assert steps_saved(out) == [2]
    go_on(out)
    assert outcome(out) == whole[kind]


def fail() -> None:
    raise ValueError("as on purpose")


# Before which call rank 1 fails, and the steps that are saved then
ERRORS = {
    "where all can save": ("gft.groups._own", 4, [3, 2]),
    "between two exchanges": ("gft.update.rows_of", 7, [2]),
    "before the first step": ("gft.commands.train.load_examples", 1, None),
}


@pytest.mark.parametrize("error", ERRORS)
def test_error_of_one_rank_ends_all_and_is_told_once(error, folder, whole, tmp_path):
    name, call, saved = ERRORS[error]
    out, begun = tmp_path / "out", time.monotonic()
    found = start(command(folder, out), lambda: trap(name, call, fail), range(1, 2))
    assert time.monotonic() - begun < SOON
    assert [ended.code for ended in found] == [1] * RANKS, found
    assert "gft: rank 1: as on purpose" in found[1].output
    assert "gft: " not in found[0].output
    assert "Traceback" not in found[0].output
    assert saved is None or steps_saved(out) == saved
    if saved is not None:
        go_on(out)
        assert outcome(out) == whole["ddp"]
