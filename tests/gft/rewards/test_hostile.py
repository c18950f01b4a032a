"""Hostile completions and hostile reward functions: each is a reward or a counted failure.

Nothing is executed that should not be, no process is left, and the trainer goes on.
"""

from __future__ import annotations

import os
import signal
import time
import uuid
from pathlib import Path

import pytest

from gft.data.files import Example
from gft.rewards.pool import RewardPool

from . import hostile_processes
from .hostile_answers import ANSWERS, MARK, SOLUTIONS
from .hostile_functions import EXPECTED
from .processes import gone
from .scoring import EXAMPLE, scores

TAG = "HOSTILE_TEST"


@pytest.fixture
def tag(monkeypatch):
    """In the environment of workers, and of what they start."""
    tag = uuid.uuid4().hex
    monkeypatch.setenv(TAG, tag)
    return tag


@pytest.fixture
def unharmed(monkeypatch, tmp_path, tag):
    """Fails the test if processes are left, or if folder, environment or signals are others."""
    monkeypatch.chdir(tmp_path)
    before = state()
    yield tmp_path
    assert state() == before
    assert not [pid for pid in tagged(tag) if not gone(pid)]
    assert not list(tmp_path.iterdir())


def state() -> tuple:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
    return os.getcwd(), environment, handlers


def tagged(tag: str) -> list[int]:
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"{TAG}={tag}".encode() in environment.read_bytes().split(b"\0"):
                found.append(int(environment.parent.name))
        except OSError:
            continue
    return found


@pytest.fixture
def quiet():
    """Workers print where nobody reads: one of them prints without end."""
    null, kept = os.open(os.devnull, os.O_WRONLY), [os.dup(number) for number in (1, 2)]
    for number in (1, 2):
        os.dup2(null, number)
    yield
    for number, copy in zip((1, 2), kept, strict=True):
        os.dup2(copy, number)
        os.close(copy)
    os.close(null)


def test_there_are_as_many_as_promised():
    assert len(set(ANSWERS)) >= 200
    assert len(EXPECTED) >= 40


@pytest.mark.parametrize("reward", ["math", "number"])
def test_hostile_answers_are_wrong_or_counted(reward, unharmed):
    """None is right, none is run, and none takes the time that a call may have."""
    answers = [answer.replace(MARK, str(unharmed / "mark")) for answer in ANSWERS]
    solutions = SOLUTIONS if reward == "math" else ("42",)
    items = [(a, Example("p", solutions[i % len(solutions)], origin=f"f:{i}")) for i, a in enumerate(answers)]
    with RewardPool(reward, workers=2 if reward == "math" else None, seconds=20) as pool:
        scored = pool.score(items, [False] * len(items))
        assert scores(pool, r"\boxed{6 \cdot 7}")[0].value == 1.0
    wrong = [(answer, one) for answer, one in zip(answers, scored, strict=True) if one.value not in (0.0, None)]
    assert not wrong
    assert all((one.value is None) == (one.error is not None) for one in scored)
    assert not [one.error for one in scored if one.error and ("timed out" in one.error or "worker" in one.error)]
    assert pool.errors == sum(one.error is not None for one in scored)


@pytest.mark.parametrize("name", EXPECTED, ids=lambda name: name.partition(":")[2])
@pytest.mark.usefixtures("quiet", "unharmed")
def test_hostile_functions_are_rewards_or_counted(name):
    expected = EXPECTED[name]
    seconds = 0.5 if expected == "timed out" else 20.0  # a busy machine takes its time for the others
    with RewardPool(name, workers=1, seconds=seconds, memory_mib=256) as pool:
        first, second = scores(pool, "a", "b")
    for one in (first, second):  # the second call is no worse for the first one
        if isinstance(expected, float):
            assert (one.value, one.error) == (expected, None)
        else:
            assert one.value is None
            assert expected in one.error
    assert pool.errors == 2 * isinstance(expected, str)


def test_a_fork_that_comes_back_ends(tag):
    """It would read calls and answer them beside the worker."""
    with RewardPool(f"{hostile_processes.__name__}:forks", workers=1) as pool:
        assert [one.value for one in scores(pool, "a", "b", "c")] == [1.0] * 3
        deadline = time.monotonic() + 5
        while len(tagged(tag)) > 1 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(tagged(tag)) == 1


@pytest.mark.usefixtures("unharmed")
def test_a_worker_that_reads_no_more_holds_up_nobody():
    """A long response fills the pipe, and sending it would take for ever."""
    with RewardPool(f"{hostile_processes.__name__}:never_reads_again", workers=1, seconds=0.5) as pool:
        first, second = pool.score([("a", EXAMPLE), ("x" * 2_000_000, EXAMPLE)], [False, False])
    assert first.value == 1.0
    assert second.error == "timed out after 0.5 s"
