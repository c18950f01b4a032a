"""A second signal leaves at once, an early one leaves no trace, a closed terminal loses nothing."""

from __future__ import annotations

import os
import pty
import signal
from signal import SIGHUP, SIGINT, SIGTERM, SIGUSR1

import pytest

from .harness import send, trap
from .test_faults import ADAM
from .tiny import go_on, outcome, start, steps_saved

# where, nth call, first and second signal, exit code, steps of which a checkpoint stands
TWICE = [
    ("gft.moments.save_file", 2, (SIGTERM, SIGTERM), 75, [2]),
    ("gft.checkpoint._measure", 3, (SIGINT, SIGINT), 130, []),
    ("pathlib.Path.rename", 2, (SIGUSR1, SIGTERM), 75, [2]),  # whole but for its name
    (ADAM, 40, (SIGTERM, SIGINT), 130, [2]),
    ("gft.rollout.Heed.__call__", 8, (SIGHUP, SIGTERM), 75, []),
    ("gft.metrics.MetricsLog.write", 4, (SIGTERM, SIGTERM), 75, [2]),
    ("gft.train.make_batch", 4, (SIGTERM, SIGTERM), 75, [2]),
]


@pytest.mark.parametrize(("function", "call", "signals", "code", "saved"), TWICE)
def test_second_signal_leaves_at_once(function, call, signals, code, saved, folder, whole, tmp_path):
    ended = start(folder, tmp_path / "out", lambda: trap(function, call, send(*signals)))
    assert ended.code == code, ended.output
    assert steps_saved(tmp_path / "out") == saved
    resumed = go_on(folder, tmp_path / "out")
    assert resumed.code == 0, resumed.output
    assert outcome(tmp_path / "out") == whole


def test_second_signal_while_the_first_one_saves(folder, whole, tmp_path):
    """The checkpoint of step 2 stands, and the one that the first signal asked for does not."""

    def prepare():
        trap("gft.train.make_batch", 4, send(SIGTERM))
        trap("gft.moments.save_file", 2, send(SIGTERM))

    ended = start(folder, tmp_path / "out", prepare)
    assert ended.code == 75, ended.output
    assert steps_saved(tmp_path / "out") == [2]
    assert not list((tmp_path / "out").glob(".*saving"))
    assert go_on(folder, tmp_path / "out").code == 0
    assert outcome(tmp_path / "out") == whole


@pytest.mark.parametrize(
    "function", ["gft.commands.train.load_examples", "gft.commands.train.load_policy", "gft.train.usable_examples"]
)
def test_signal_before_the_run_has_begun_leaves_nothing(function, folder, tmp_path):
    ended = start(folder, tmp_path / "out", lambda: trap(function, 1, send(SIGTERM)))
    assert ended.code == 143, ended.output
    assert "gft: ended by SIGTERM" in ended.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("call", [1, 3])
def test_closed_terminal_saves_and_says_so_in_its_exit_code(call, folder, whole, tmp_path):
    """The terminal goes, its SIGHUP comes, and every write to it fails from then on."""

    def prepare():
        leader, terminal = pty.openpty()
        for number in (1, 2):
            os.dup2(terminal, number)
        os.close(terminal)

        def close():
            os.close(leader)
            send(SIGHUP)()

        trap("gft.train.make_batch", call, close)

    ended = start(folder, tmp_path / "out", prepare)
    assert ended.code == 75
    assert go_on(folder, tmp_path / "out").code == 0
    assert outcome(tmp_path / "out") == whole


def test_ignored_signal_ends_nothing(folder, whole, tmp_path):
    """As nohup leaves SIGHUP."""

    def prepare():
        signal.signal(SIGHUP, signal.SIG_IGN)
        trap("gft.train.make_batch", 2, send(SIGHUP))

    ended = start(folder, tmp_path / "out", prepare)
    assert ended.code == 0, ended.output
    assert outcome(tmp_path / "out") == whole
