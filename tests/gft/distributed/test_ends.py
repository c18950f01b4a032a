"""However a run of two processes ends, both end, and what goes on from there has the same bits."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from signal import SIGKILL, SIGTERM

import pytest

from gft import cli
from gft.commands import train as run_command

from ..faults.harness import Ended, send, trap
from ..faults.tiny import command, make_inputs, outcome, steps_saved
from ..faults.tiny import go_on as one_process
from ..faults.tiny import start as start_alone
from .ranks import RANKS, ranks

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
    """Numbers and weights of the run to which nothing happens, by --parallel."""

    @cache
    def run(kind: str) -> tuple[list[dict], dict[str, bytes]]:
        for ended in start(command(folder, folder / kind, "--parallel", kind)):
            assert ended.code == 0, ended.output
        return outcome(folder / kind)

    return run


# What is sent or raised, and before which call, on which ranks, and the steps that are saved then
STOPS = {
    "SIGTERM to one in a rollout": ("gft.groups.draw", 3, range(1, 2), [2]),
    "SIGTERM to one in an update": ("gft.train.optimizer_step", 3, range(1, 2), [3, 2]),
    "SIGTERM to all in an evaluation": ("gft.evaluate.sample", 4, EVERY, [3, 2]),
}


@pytest.mark.parametrize(
    ("stop", "kind"),
    [
        pytest.param(stop, kind, marks=() if ("rollout" in stop and kind == "fsdp") else pytest.mark.slow)
        for stop in STOPS
        for kind in ("ddp", "fsdp")
    ],
)
def test_stop_is_one_of_all_and_resumes_to_the_same_bits(stop, kind, folder, whole, tmp_path):
    name, call, where, saved = STOPS[stop]
    out = tmp_path / "out"
    found = start(command(folder, out, "--parallel", kind), lambda: trap(name, call, send(SIGTERM, SIGTERM)), where)
    assert [ended.code for ended in found] == [75] * RANKS, found
    assert "".join(ended.output for ended in found).count("gft: ended by SIGTERM") == 1
    assert steps_saved(out) == saved
    go_on(out)
    assert outcome(out) == whole(kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_killed_run_resumes_to_the_same_bits(kind, folder, whole, tmp_path):
    out = tmp_path / "out"
    kill = lambda: trap("gft.train.optimizer_step", 4, send(SIGKILL))  # noqa: E731
    found = start(command(folder, out, "--parallel", kind), kill)
    assert [ended.code for ended in found] == [-SIGKILL] * RANKS, found
    assert steps_saved(out) == [2]
    go_on(out)
    assert outcome(out) == whole(kind)


def fail() -> None:
    raise ValueError("as on purpose")


# Before which call rank 1 fails, and the steps that are saved then
ERRORS = {
    "where all can save": ("gft.groups._own", 4, [3, 2]),
    "between two exchanges": ("gft.update.rows_of", 7, [2]),
    "before the first step": ("gft.commands.train.load_examples", 1, None),
}


@pytest.mark.parametrize(
    "error", [pytest.param(error, marks=pytest.mark.slow if "between" in error else ()) for error in ERRORS]
)
def test_error_of_one_rank_ends_all_and_is_told_once(error, folder, whole, tmp_path):
    name, call, saved = ERRORS[error]
    out = tmp_path / "out"
    found = start(command(folder, out), lambda: trap(name, call, fail), range(1, 2))
    assert [ended.code for ended in found] == [1] * RANKS, found
    assert "gft: rank 1: as on purpose" in found[1].output
    assert "gft: " not in found[0].output
    assert "Traceback" not in found[0].output
    assert saved is None or steps_saved(out) == saved
    if saved is not None:
        go_on(out)
        assert outcome(out) == whole("ddp")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_another_number_of_processes_goes_on_and_is_told(kind, folder, whole, tmp_path):
    """Moments and the order of prompts are kept: given responses alone have the same numbers."""
    out = tmp_path / "out"
    given = ("--own", "0", "--parallel", kind)
    start(command(folder, out, *given), lambda: trap("gft.train.optimizer_step", 4, send(SIGKILL)))
    alone = one_process(folder, out)
    assert alone.code == 0, alone.output
    assert "checkpoint-2 is of 2 processes, and there are 1: samples differ from here on" in alone.output
    for ended in start(command(folder, tmp_path / "whole", *given)):
        assert ended.code == 0, ended.output
    (rows, _), (expected, _) = outcome(out), outcome(tmp_path / "whole")
    assert [row["loss"] for row in rows if "loss" in row] == pytest.approx(
        [row["loss"] for row in expected if "loss" in row], rel=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [("ddp", "fsdp"), ("fsdp", "ddp")])
def test_moments_of_either_kind_are_read_by_the_other(before, after, folder, whole, tmp_path):
    out = tmp_path / "out"
    kill = lambda: trap("gft.train.optimizer_step", 4, send(SIGKILL))  # noqa: E731
    start(command(folder, out, "--parallel", before), kill)
    for ended in start(["train", "--resume", "--out", str(out), "--parallel", after]):
        assert ended.code == 0, ended.output
    (rows, _), (expected, _) = outcome(out), whole(before)
    assert [row["loss"] for row in rows if "loss" in row] == pytest.approx(
        [row["loss"] for row in expected if "loss" in row], rel=1e-5
    )
    assert len(rows) == len(expected)


@pytest.mark.parametrize(
    ("count", "more", "said"),
    [
        (1, ["--parallel", "fsdp"], "--parallel is fsdp, and would do nothing in one process"),
        (2, ["--device", "tpu"], "--device is 'tpu'"),
    ],
)
def test_refused(count, more, said, folder, tmp_path):
    found = ranks(lambda rank: cli.main(command(folder, tmp_path / "out", *more)), tmp_path, count)
    assert [ended.code for ended in found] == [1] * count
    assert "".join(ended.output for ended in found).count("gft: ") == 1
    assert said in "".join(ended.output for ended in found)
    assert not (tmp_path / "out").exists()


def test_comparison_is_of_one_process(tmp_path):
    found = ranks(lambda rank: cli.main(["train", "--out", str(tmp_path / "out")]), tmp_path)
    told = "".join(ended.output for ended in found)
    assert told.count("the comparison of methods runs in one process, and there are 2") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [("--lora", "2"), ("--checkpointing",), ("--checkpointing", "--parallel", "fsdp")],
    ids=" ".join,
)
def test_command_makes_the_run_of_one_process(more, folder, tmp_path):
    alone = start_alone(
        folder, tmp_path / "one", lambda: None, *more[:2] if "--lora" in more else more[:1], "--own", "0"
    )
    assert alone.code == 0, alone.output
    for ended in start(command(folder, tmp_path / "two", *more, "--own", "0")):
        assert ended.code == 0, ended.output
    (rows, weights), (expected, others) = outcome(tmp_path / "two"), outcome(tmp_path / "one")
    for row, other in zip(rows, expected, strict=True):
        row.pop("eval_sampled", None)  # other samples
        assert row == pytest.approx({name: other[name] for name in row}, rel=1e-4, abs=1e-5)
    assert weights.keys() == others.keys()
