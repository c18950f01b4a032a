"""--log-to: every row once, also where a run goes on, and no run ends for a logger."""

import json
import sys
from dataclasses import replace
from importlib.util import find_spec
from types import ModuleType
from typing import ClassVar

import pytest

from gft import cli
from gft.loggers import Loggers, check_installed, logging_to
from gft.metrics import MetricsLog
from gft.options import OptionError
from gft.stop import Stopped

from .runs import config, numbers, resume, run

# wandb's and trackio's interface, as far as it is used; what they are given goes to a file.
WANDB = """
import json, os

class Run:
    def __init__(self, **settings):
        self.settings = settings
    def log(self, data, step=None):
        with open(os.environ["SEEN"], "a") as file:
            print(json.dumps([step, data]), file=file)
    def finish(self):
        with open(os.environ["SEEN"], "a") as file:
            print(json.dumps(["finish", {}]), file=file)

def login(prompt=True):
    assert prompt is False, "a run must not be asked"
    return False

def init(**settings):
    with open(os.environ["SEEN"], "a") as file:
        print(json.dumps(["init", {k: v for k, v in settings.items() if k != "config"}]), file=file)
    return Run(**settings)
"""
TRACKIO = WANDB.replace(
    "**settings):\n    with",
    "project, name=None, config=None, resume='never'):\n    settings = {'name': name, 'resume': resume}\n    with",
)


@pytest.fixture
def seen(tmp_path, monkeypatch):
    """What the loggers were given, in order: (step, numbers)."""
    folder = tmp_path / "installed"
    folder.mkdir()
    (folder / "wandb.py").write_text(WANDB)
    (folder / "trackio.py").write_text(TRACKIO)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    yield lambda: [json.loads(line) for line in (tmp_path / "seen").read_text().splitlines()]
    for name in ("wandb", "trackio"):
        sys.modules.pop(name, None)


def interrupted(policy, rewards, out, settings, monkeypatch):
    """A run of four steps that is killed in the third, and goes on from the second."""
    from gft import train as loop

    original, calls = loop.optimizer_step, []

    def killed(*args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise Stopped(9, at_once=True)
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "optimizer_step", killed)
        with pytest.raises(Stopped):
            run(policy, rewards, out, settings)
    return resume(rewards, out, settings)


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_run_that_goes_on_gives_no_row_twice(name, policy, rewards, tmp_path, monkeypatch, seen):
    settings = config(steps=4, save_every=2, log_to=(name,))
    _, rows = interrupted(policy, rewards, tmp_path / "run", settings, monkeypatch)
    given = seen()
    assert [step for step, _ in given] == ["init", 1, 2, 3, "finish", "init", 4, "finish"]
    assert {step: n["loss"] for step, n in given if isinstance(step, int)} == {r["step"]: r["loss"] for r in rows}
    assert given[0][1]["name"] == given[5][1]["name"]
    assert given[0][1]["resume"] == "allow"


def test_loggers_change_no_number_of_a_run(policy, rewards, tmp_path, seen):
    from gft.demo.base_model import tokenizer, untrained
    from gft.policy import make_policy

    _, rows = run(policy, rewards, tmp_path / "a", config(log_to=("wandb", "trackio")))
    _, plain = run(make_policy(untrained(0).eval(), tokenizer()), rewards, tmp_path / "b", config())
    assert numbers(rows) == numbers(plain)


def test_wandb_is_offline_in_the_runs_folder_and_never_asks(tmp_path, monkeypatch, seen):
    said = []
    with logging_to(config(log_to=("wandb",), out=tmp_path), "name", MetricsLog(tmp_path / "m"), said.append):
        pass
    ((_, settings), _) = seen()
    assert (settings["mode"], settings["dir"], settings["id"]) == ("offline", str(tmp_path), "name")
    monkeypatch.setenv("WANDB_MODE", "online")  # and no key
    with logging_to(config(log_to=("wandb",), out=tmp_path), "name", MetricsLog(tmp_path / "m"), said.append):
        pass
    assert len(seen()) == 2
    assert said == [
        "--log-to wandb failed and is left out from here on: RuntimeError: there is no API key: `wandb login` first, "
        "or unset WANDB_MODE"
    ]


class Broken:
    def __init__(self, good=0):
        self.good, self.rows = good, []

    def log(self, numbers, step):
        if step > self.good:
            raise ValueError("the\nserver is gone")
        self.rows.append((step, numbers))

    def finish(self):
        raise ValueError("still gone")


def test_loggers_that_fail_are_told_once_and_left_alone(tmp_path):
    said, broken, good = [], Broken(good=1), Broken(good=9)
    loggers = Loggers(tmp_path, "name", said.append, {"trackio": broken, "wandb": good})
    for step in (1, 2, 3):
        loggers.give({"step": step, "loss": 0.5, "nll": float("nan"), "kl": None, "skipped": False})
    assert said == ["--log-to trackio failed and is left out from here on: ValueError: the server is gone"]
    assert broken.rows == [(1, {"loss": 0.5, "skipped": 0.0})]
    assert [step for step, _ in good.rows] == [1, 2, 3]
    loggers.close()
    assert len(said) == 2


def test_rows_of_a_step_and_of_its_evaluation_are_two(tmp_path):
    good = Broken(good=9)
    loggers = Loggers(tmp_path, "name", print, {"wandb": good})
    for row in ({"step": 1, "loss": 1.0}, {"step": 1, "eval_greedy": 0.5}, {"step": 1, "loss": 1.0}):
        loggers.give(row)
    assert [list(n) for _, n in good.rows] == [["loss"], ["eval_greedy"]]


def test_check_installed_refuses_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "trackio").mkdir()  # a folder that a run left is no package
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "trackio", raising=False)
    with pytest.raises(OptionError, match=r"^--log-to trackio: it is not installed: pip install trackio\.$"):
        check_installed(("trackio",))


def test_train_refuses_a_logger_that_is_missing_before_anything_else(tmp_path, monkeypatch):
    monkeypatch.setattr("gft.loggers.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"^gft: --log-to tensorboard: it is not installed"):
        cli.main(["train", "--log-to", "tensorboard", "wandb", "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


class Writer:
    """SummaryWriter's interface, as far as it is used."""

    made: ClassVar[list] = []

    def __init__(self, log_dir):
        self.log_dir, self.scalars, self.calls = log_dir, [], []
        Writer.made.append(self)

    def add_scalar(self, tag, value, global_step):
        self.scalars.append((tag, value, global_step))

    def flush(self):
        self.calls.append("flush")

    def close(self):
        self.calls.append("close")


def test_tensorboard_has_every_row_on_the_disk_before_the_next(policy, rewards, tmp_path, monkeypatch):
    stub = ModuleType("torch.utils.tensorboard")
    stub.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", stub)
    monkeypatch.setattr(Writer, "made", [])
    _, rows = run(policy, rewards, tmp_path, config(log_to=("tensorboard",)))
    (writer,) = Writer.made
    assert writer.log_dir.startswith(str(tmp_path / "tensorboard"))
    assert [(v, s) for tag, v, s in writer.scalars if tag == "loss"] == [(r["loss"], r["step"]) for r in rows]
    assert writer.calls == ["flush", "flush", "close"]


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="tensorboard is not installed: pip install tensorboard")
def test_tensorboard_reads_what_a_run_that_went_on_wrote(policy, rewards, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = config(steps=4, save_every=2, log_to=("tensorboard",))
    _, rows = interrupted(policy, rewards, tmp_path, settings, monkeypatch)
    (folder,) = (tmp_path / "tensorboard").iterdir()
    events = EventAccumulator(str(folder))
    events.Reload()
    assert [(e.step, pytest.approx(e.value)) for e in events.Scalars("loss")] == [(r["step"], r["loss"]) for r in rows]


def test_log_to_may_change_where_a_run_goes_on(policy, rewards, tmp_path, seen):
    run(policy, rewards, tmp_path, config())
    resume(rewards, tmp_path, replace(config(), log_to=("wandb",)))
