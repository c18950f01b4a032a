"""Signals end a run with whole weights: none is taken in the middle of an update or a save."""

import os
import signal
import threading
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import load_file

from gft.demo.base_model import tokenizer, untrained
from gft.model.policy import make_policy
from gft.runs.checkpoint import save_model
from gft.stop import Stopped, check, heed_signals, held

from .runs import config, run

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class Missed(Exception):
    """A signal came to the handler that was there before, which would have ended the process."""


def miss(number, frame):
    raise Missed(number)


@contextmanager
def handlers():
    """Harmless handlers in place of the test process's own, which are put back afterwards."""
    before = {number: signal.signal(number, miss) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def arrive(number=signal.SIGTERM):
    """A real signal to this process, whose handler runs before the next line."""
    os.kill(os.getpid(), number)


@pytest.fixture
def heeded():
    with handlers():
        heed_signals()
        yield


@pytest.mark.usefixtures("heeded")
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_every_signal_ends_like_ctrl_c(number):
    with pytest.raises(KeyboardInterrupt):
        arrive(number)


def test_an_ignored_signal_stays_ignored():
    """As nohup leaves it: the run goes on when its terminal closes."""
    with handlers():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        heed_signals()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        with held():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        arrive(signal.SIGHUP)


def interrupted(*signals):
    """How far a block gets, and the lines after it, when these signals arrive in it."""
    reached = []

    def work():
        with held():
            for number in signals:
                arrive(number)
                reached.append(number)
        reached.append("beyond")

    with pytest.raises(KeyboardInterrupt):
        work()
    return reached


@pytest.mark.usefixtures("heeded")
def test_held_holds_a_signal_back_to_its_end():
    before = signal.getsignal(signal.SIGHUP)
    assert interrupted(signal.SIGHUP) == [signal.SIGHUP]
    assert signal.getsignal(signal.SIGHUP) is before


@pytest.mark.usefixtures("heeded")
def test_held_yields_to_a_second_signal_at_once():
    assert interrupted(signal.SIGTERM, signal.SIGINT) == [signal.SIGTERM]


@pytest.mark.usefixtures("heeded")
def test_check_ends_a_held_block_and_an_inner_block_does_not():
    reached = []

    def work():
        with held():
            with held():
                arrive(signal.SIGUSR1)
            reached.append("behind the inner block")
            check()

    with pytest.raises(Stopped, match="SIGUSR1") as stop:
        work()
    assert reached == ["behind the inner block"]
    assert not stop.value.at_once
    check()  # and it is taken once


def test_exit_codes():
    codes = {}
    for number in SIGNALS:
        stop = Stopped(number)
        codes[stop.args[0]] = [stop.exit_code]
        stop.resumable = True
        codes[stop.args[0]].append(stop.exit_code)
    assert codes == {"SIGINT": [130, 130], "SIGTERM": [143, 75], "SIGHUP": [129, 75], "SIGUSR1": [138, 75]}


def test_held_runs_in_any_thread():
    done = []

    def work():
        with held():
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]


@pytest.mark.usefixtures("heeded")
def test_train_stopped_within_an_update_saves_whole_updates(rewards, tmp_path, monkeypatch):
    """The weights of two whole steps, as a run of two steps leaves them."""
    plain = torch.optim.AdamW.step
    calls = []

    def step(self, *args, **kwargs):
        calls.append(1)
        if len(calls) != 2:
            return plain(self, *args, **kwargs)
        # An update in two halves, with a signal between them.
        every = self.param_groups
        assert len(every) == 2
        for i, half in enumerate(every):
            self.param_groups = [half]
            plain(self, *args, **kwargs)
            if i == 0:
                arrive(signal.SIGTERM)
        self.param_groups = every

    whole = make_policy(untrained(0), tokenizer())
    run(whole, rewards, tmp_path / "whole", config(steps=2, objective="sft"))
    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(KeyboardInterrupt):
        run(make_policy(untrained(0), tokenizer()), rewards, tmp_path / "cut", config(steps=5, objective="sft"))
    assert len(calls) == 2
    expected, found = (
        load_file(tmp_path / name / "model.safetensors") for name in ("whole/model", "cut/checkpoint-2/model")
    )
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.usefixtures("heeded")
def test_save_model_is_finished_before_a_signal_is_heeded(policy, tmp_path, monkeypatch):
    original = policy.model.save_pretrained

    def save(folder):
        arrive(signal.SIGTERM)
        original(folder)

    monkeypatch.setattr(policy.model, "save_pretrained", save)
    with pytest.raises(KeyboardInterrupt):
        save_model(policy, tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert load_file(tmp_path / "model" / "model.safetensors")
