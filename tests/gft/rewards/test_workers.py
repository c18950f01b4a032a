"""Reward workers: a failed checker never gives the reward 0, and none outlives its parent."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from gft.data.files import Example
from gft.rewards.calls import call_reward
from gft.rewards.pool import RewardPool, Scored

from . import orders
from .processes import alive, gone
from .scoring import EXAMPLE, scores


@pytest.fixture(scope="module")
def pool():
    with RewardPool(orders.NAME, workers=2, seconds=1.0, memory_mib=256) as pool:
        yield pool


def test_score_keeps_the_order_of_results(pool):
    texts = [f"value {i}" for i in range(20)]
    texts[3] = "sleep 0.3"  # one worker is held up while the other goes on
    expected = [float(i) for i in range(20)]
    expected[3] = 1.0
    assert [scored.value for scored in scores(pool, *texts)] == expected


def test_score_counts_every_failure_and_never_calls_it_zero(pool):
    before = pool.errors
    bad = [
        "raise boom",
        "value null",
        "value NaN",
        "value Infinity",
        'value "1.0"',
        "value [1]",
        'value {"acc": 1}',
        "huge",
    ]
    results = scores(pool, *bad, "value true", 'value {"score": 0.5}')
    assert [scored.value for scored in results] == [None] * len(bad) + [1.0, 0.5]
    assert all(scored.error for scored in results[: len(bad)])
    assert re.fullmatch(r"KeyError: 'boom' \(orders.py:\d+\)", results[0].error)
    assert all("not a number" in scored.error for scored in results[4:6])
    assert "a dict without 'score'" in results[6].error
    assert "NoneType" in results[1].error
    assert pool.errors - before == len(bad)
    scores(pool, "raise again", "value 1")
    assert pool.errors - before == len(bad) + 1


def test_score_takes_the_numbers_of_numpy(pool):
    results = scores(
        pool, *(f"return {name}" for name in ("numpy float", "numpy bool", "numpy scalar array", "decimal"))
    )
    assert [scored.value for scored in results] == [0.5, 1.0, 0.25, 0.5]


def test_call_reward_takes_the_scalars_of_torch_and_refuses_its_vectors():
    torch = pytest.importorskip("torch")
    assert call_reward(lambda: torch.tensor(0.5), []) == Scored(0.5, None)
    assert call_reward(lambda: torch.tensor(True), []) == Scored(1.0, None)
    for bad in (torch.tensor([1.0]), torch.ones(2), torch.tensor(float("nan"))):
        scored = call_reward(lambda bad=bad: bad, [])
        assert scored.value is None
        assert "the reward function returned tensor(" in scored.error


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("numpy nan", "not a finite number"),
        ("numpy array", "it is called with one response"),
        ("tuple", "it is called with one response"),
        ("complex", "1j (complex), not a number"),
        ("async", "not an async one"),
        ("unspeakable", "Unspeakable: (its text cannot be shown)"),
    ],
)
def test_score_says_what_is_wrong_with_a_returned_value(pool, name, reason):
    (scored,) = scores(pool, f"return {name}")
    assert scored.value is None
    assert reason in scored.error


def test_score_survives_rewards_that_write_to_their_pipe(pool):
    length = "\x00\x00\x10\x00"  # what a reader of lengths would wait for
    begun, forged, endless, later = "[", "[0, 1.0, null]\n", "1" * 100_000, "[3, 1.0, null]\n"
    start = time.monotonic()
    results = scores(
        pool, *(f"write {json.dumps(text)}" for text in (length, begun, forged, endless, later)), "value 0.5"
    )
    assert [scored.value for scored in results] == [None] * 5 + [0.5]
    assert all("written to its pipe" in scored.error for scored in results[:5])
    assert time.monotonic() - start < 8


def test_score_takes_prompts_that_json_does_not_know(pool):
    prompt = ({"role": "user", "content": "p", "date": datetime.date(2020, 3, 4)},)
    (scored,) = pool.score([("value 1", Example(prompt, "42", origin="f:1"))], [False])
    assert scored == Scored(1.0, None)


def test_score_survives_workers_that_hang_exit_or_eat_memory(pool):
    start = time.monotonic()
    results = scores(
        pool, "value 1", "sleep 60", "value 2", "exit", "value 3", "allocate", "value 4", "sleep 60", "value 5"
    )
    assert [scored.value for scored in results] == [1, None, 2, None, 3, None, 4, None, 5]
    errors = [scored.error for scored in results if scored.error]
    assert errors == [
        "timed out after 1 s",
        "the worker process ended with exit code 1",
        "ran out of memory (limit 256 MiB)",
        "timed out after 1 s",
    ]
    assert time.monotonic() - start < 8


def test_score_replaces_a_worker_that_was_killed_between_calls(pool):
    for scored in scores(pool, "pid", "pid", "pid"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(scored.value), signal.SIGKILL)
    time.sleep(0.1)
    assert [scored.value for scored in scores(pool, "value 1", "value 2", "value 3")] == [1, 2, 3]


def test_score_kills_what_a_stuck_reward_started(pool):
    (child,) = scores(pool, "child")
    assert alive(int(child.value))
    scores(pool, "sleep 60", "sleep 60", "sleep 60")  # both workers are killed
    assert gone(int(child.value))


def test_score_kills_what_a_reward_started_in_a_session_of_its_own():
    with RewardPool(orders.NAME, workers=1, seconds=1.0) as pool:
        (child,) = scores(pool, "session")
        assert alive(int(child.value))
        scores(pool, "sleep 60")
        assert gone(int(child.value))
        (child,) = scores(pool, "session")
        assert alive(int(child.value))
    assert gone(int(child.value))


def test_score_tells_a_function_about_prompt_and_truncation(pool):
    assert pool.score([("told", EXAMPLE)], [True]) == [Scored(1.0, None)]


def test_workers_do_not_import_torch(pool):
    pytest.importorskip("torch")
    assert scores(pool, "torch")[0].value == 0.0


def test_importing_gft_rewards_and_data_does_not_import_torch():
    code = "import sys, gft.rewards.pool, gft.data.files; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_close_ends_the_workers_and_can_be_repeated():
    pool = RewardPool(orders.NAME, workers=2, seconds=5)
    pids = {int(scored.value) for scored in scores(pool, *["pid"] * 8)}
    pool.close()
    pool.close()
    assert pids
    assert not any(alive(pid) for pid in pids)
    with pytest.raises(ValueError, match="closed"):
        scores(pool, "pid")


def test_score_after_an_interrupt_gives_no_stale_results():
    class Interrupted(BaseException): ...

    def interrupt(*_):
        raise Interrupted

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with RewardPool(orders.NAME, workers=1, seconds=20) as pool:
            timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGUSR1))
            timer.start()
            with pytest.raises(Interrupted):
                scores(pool, "sleep 1", "value 1")
            assert scores(pool, "value 7")[0].value == 7.0
            (pid,) = scores(pool, "pid")
        assert not alive(int(pid.value))
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_their_parent(number):
    # A shell that starts the suite in the background has it ignore SIGINT, which children inherit:
    # this one minds it again, as a program started by hand does.
    code = f"""
        import signal
        from gft.data.files import Example
        from gft.rewards.pool import RewardPool
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with RewardPool({orders.NAME!r}, workers=2, seconds=1.0) as pool:
            found = pool.score([("pid", Example("p", "42"))] * 2, [False] * 2)
            print(*{{int(scored.value) for scored in found}}, flush=True)
            pool.score([("sleep 60", Example("p", "42"))], [False])
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, text=True)
    pids = process.stdout.readline().split()
    time.sleep(0.2)
    process.send_signal(number)
    assert process.wait(timeout=10) != 0
    process.stdout.close()
    assert pids
    assert all(gone(int(pid)) for pid in pids)


def test_reward_pool_takes_a_function():
    with RewardPool(orders.Grader.grade, workers=1) as pool:
        assert scores(pool, "anything") == [Scored(0.25, None)]


def test_reward_pool_refuses_what_workers_cannot_import():
    with pytest.raises(ValueError, match="top level of a module"):
        RewardPool(lambda *_: 1.0)
    with pytest.raises(ValueError, match="could not load the reward function: ModuleNotFoundError"):
        RewardPool("no_such_module:f", workers=1)
    with pytest.raises(ValueError, match="could not load the reward function: AttributeError"):
        RewardPool(f"{orders.__name__}:nothing", workers=1)
    with pytest.raises(ValueError, match="is a module, not a function"):
        RewardPool(f"{orders.__name__}:os", workers=1)
