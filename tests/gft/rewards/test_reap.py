"""What a worker's function started is found by its environment, and looked at until it has one."""

from __future__ import annotations

import os
import signal

import pytest

from gft.rewards import reap


@pytest.fixture
def killed(monkeypatch, tmp_path):
    """A folder in place of /proc, and the ids that are killed."""
    killed = []
    monkeypatch.setattr(reap, "Path", lambda name: tmp_path if name == "/proc" else pytest.fail(name))
    monkeypatch.setattr(reap, "_blank", set())
    monkeypatch.setattr("os.kill", lambda pid, number: killed.append((pid, number)))
    return killed


def process(folder, pid, environment, state="S"):
    (folder / str(pid)).mkdir(exist_ok=True)
    (folder / str(pid) / "environ").write_bytes(environment)
    (folder / str(pid) / "stat").write_text(f"{pid} (a) b) {state} 1 1")
    return folder / str(pid)


MARKED = b"A=1\0GFT_REWARD_WORKER=mark\0B=2\0"


def test_end_marked_kills_those_of_the_mark_and_never_itself(killed, tmp_path):
    for pid, environment in ((11, MARKED), (12, b"GFT_REWARD_WORKER=marked\0"), (os.getpid(), MARKED)):
        process(tmp_path, pid, environment)
    reap.end_marked("mark")
    assert killed == [(11, signal.SIGKILL)]


def test_end_marked_looks_again_at_who_starts_a_program(killed, tmp_path, monkeypatch):
    """For a moment it shows no environment, and the mark would be overlooked."""
    process(tmp_path, 11, b"")
    monkeypatch.setattr("time.sleep", lambda seconds: process(tmp_path, 11, MARKED))
    reap.end_marked("mark")
    assert killed == [(11, signal.SIGKILL)]


def test_end_marked_waits_once_for_who_never_has_an_environment(killed, tmp_path, monkeypatch):
    slept = []
    monkeypatch.setattr("time.sleep", slept.append)
    process(tmp_path, 11, b"")
    process(tmp_path, 12, b"", state="Z")  # it has ended
    reap.end_marked("mark")
    assert len(slept) == reap.LOOKS
    reap.end_marked("mark")
    assert len(slept) == reap.LOOKS
    assert killed == []
