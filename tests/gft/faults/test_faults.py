"""Whatever ends a run and wherever, nothing valid is lost, and the run goes on to the same bits."""

from __future__ import annotations

import signal
from signal import SIGHUP, SIGINT, SIGKILL, SIGTERM, SIGUSR1

import pytest

from .harness import send, trap
from .tiny import STEPS, go_on, outcome, start, steps_saved

RESUMABLE = {SIGTERM: 75, SIGHUP: 75, SIGUSR1: 75, SIGINT: 130, SIGKILL: -9}
ADAM = "torch.Tensor.addcdiv_"  # called for every weight in turn: in the middle of an update

# where, nth call, before or after it, signal, steps of which a checkpoint stands at least
EVENTS = [
    ("gft.train.evaluate", 1, "before", SIGTERM, 0),
    ("gft.rollout.Heed.__call__", 2, "before", SIGTERM, 0),
    ("gft.rollout.Heed.__call__", 9, "before", SIGHUP, 0),
    ("gft.groups._score", 1, "before", SIGTERM, 0),
    ("gft.train.make_batch", 2, "after", SIGUSR1, 1),
    ("gft.train.make_batch", 3, "before", SIGINT, 2),
    ("gft.train.make_batch", 4, "after", SIGKILL, 2),
    ("gft.update.collate", 1, "before", SIGTERM, 0),
    ("gft.update.collate", 5, "after", SIGTERM, 1),
    ("torch.Tensor.backward", 4, "after", SIGUSR1, 1),
    (ADAM, 1, "before", SIGTERM, 1),
    (ADAM, 5, "before", SIGTERM, 1),
    (ADAM, 5, "after", SIGINT, 1),
    (ADAM, 20, "before", SIGKILL, 0),
    (ADAM, 33, "after", SIGHUP, 3),
    (ADAM, 40, "after", SIGKILL, 2),
    ("torch.optim.Optimizer.zero_grad", 2, "before", SIGTERM, 2),
    ("gft.metrics.MetricsLog.write", 2, "before", SIGTERM, 1),
    ("gft.metrics.MetricsLog.write", 3, "after", SIGKILL, 0),
    ("gft.metrics.MetricsLog.write", 4, "before", SIGKILL, 2),
    ("gft.state.RunState.advance", 2, "before", SIGINT, 2),
    ("gft.report.Progress.step", 3, "after", SIGTERM, 3),
    ("gft.train.evaluate", 2, "before", SIGTERM, 3),
    ("gft.train.evaluate", 2, "after", SIGKILL, 2),
    ("gft.train.evaluate", 3, "before", SIGUSR1, STEPS),
    ("gft.train.evaluate", 3, "before", SIGKILL, STEPS),
    ("gft.checkpoint._save_model", 1, "before", SIGTERM, 2),
    ("gft.checkpoint._save_model", 1, "after", SIGKILL, 0),
    ("gft.checkpoint._save_model", 2, "after", SIGKILL, 2),
    ("gft.moments.save_file", 2, "before", SIGTERM, 4),
    ("gft.moments.save_file", 2, "before", SIGKILL, 2),
    ("gft.checkpoint._measure", 3, "before", SIGKILL, 0),
    ("gft.folders.flush", 3, "before", SIGHUP, 2),
    ("gft.folders.flush", 3, "before", SIGKILL, 0),
    ("pathlib.Path.rename", 2, "before", SIGKILL, 0),  # the first is that of run.json
    ("pathlib.Path.rename", 2, "after", SIGKILL, 2),
    ("pathlib.Path.rename", 3, "before", SIGTERM, 4),
    ("gft.checkpoint.retire", 1, "before", SIGKILL, 4),
    ("gft.folders.remove", 7, "before", SIGKILL, 2),
    ("shutil.copytree", 1, "before", SIGKILL, STEPS),
    ("gft.checkpoint._link", 2, "after", SIGKILL, STEPS),
    ("gft.checkpoint._save_model", 3, "before", SIGTERM, STEPS),
    ("gft.checkpoint._save_model", 3, "after", SIGKILL, 4),
]
ALWAYS = {1, 6, 8, 11, 14, 19, 20, 22, 24, 28, 30, 35, 39, 41}  # the others are slow: all take half a minute of CPU


def name(event):
    return f"{signal.Signals(event[3]).name} {event[2]} {event[0].rpartition('.')[2]} {event[1]}"


@pytest.mark.parametrize(
    "event",
    [
        pytest.param(event, id=name(event), marks=() if i in ALWAYS else pytest.mark.slow)
        for i, event in enumerate(EVENTS)
    ],
)
def test_run_goes_on_after(event, folder, whole, tmp_path_factory):
    function, call, when, number, saved = event
    out = tmp_path_factory.mktemp("run") / "out"
    ended = start(folder, out, lambda: trap(function, call, send(number), after=when == "after"))
    assert ended.code == RESUMABLE[number], ended.output
    assert "Traceback" not in ended.output
    assert max(steps_saved(out), default=0) >= saved
    resumed = go_on(folder, out)
    assert resumed.code == 0, resumed.output
    assert outcome(out) == whole
    assert steps_saved(out)[0] == STEPS
    assert not list(out.glob(".*")), "what a killed save left is removed"


@pytest.mark.parametrize(("call", "saved"), [(30, [2]), pytest.param(5, [], marks=pytest.mark.slow)])
def test_error_within_an_update_saves_no_half_of_it(call, saved, folder, whole, tmp_path):
    def fail():
        raise RuntimeError("the device is gone")

    ended = start(folder, tmp_path / "out", lambda: trap(ADAM, call, fail))
    assert ended.code == 1, ended.output
    assert "gft: the device is gone" in ended.output
    assert steps_saved(tmp_path / "out") == saved
    resumed = go_on(folder, tmp_path / "out")
    assert resumed.code == 0, resumed.output
    assert outcome(tmp_path / "out") == whole
