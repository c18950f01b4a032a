"""Reward functions that do what no reward function should. Workers import this module.

EXPECTED has what becomes of each: a reward, or words of the reason that is counted.
"""

from __future__ import annotations

import builtins
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from decimal import Decimal
from multiprocessing.connection import Connection
from typing import Any

EXPECTED: dict[str, float | str] = {}


def hostile(expected: float | str) -> Callable[[Callable[[], Any]], Callable[..., Any]]:
    """A function without arguments as a reward function of verl's kind, by its own name."""

    def make(act: Callable[[], Any]) -> Callable[..., Any]:
        def reward(data_source, solution_str, ground_truth, extra_info=None):
            return act()

        EXPECTED[act.__name__] = expected
        return reward

    return make


def pipe() -> int:
    """The descriptor that the worker answers on."""
    for number in range(3, 64):
        try:
            socket.socket(fileno=os.dup(number)).close()
        except OSError:
            continue
        return number
    raise AssertionError("no pipe")


def sleep_for_ever() -> None:
    while True:
        time.sleep(60)


# Errors


@hostile("ValueError: no")
def raises():
    raise ValueError("no")


@hostile("SystemExit: 0")
def raises_system_exit():
    raise SystemExit(0)


@hostile("KeyboardInterrupt")
def raises_keyboard_interrupt():
    raise KeyboardInterrupt


@hostile("GeneratorExit")
def raises_generator_exit():
    raise GeneratorExit("x")


@hostile("RuntimeError: xxx")
def raises_a_megabyte():
    raise RuntimeError("x" * 1_000_000)


@hostile("(its text cannot be shown)")
def raises_what_cannot_be_shown():
    class Hidden(Exception):
        def __str__(self):
            raise self

    raise Hidden


@hostile("RecursionError")
def recurses():
    def deeper():
        return deeper() + 1

    return deeper()


@hostile("signal 11")
def overflows_the_stack():
    os.kill(os.getpid(), signal.SIGSEGV)


# Values


@hostile("not a finite number")
def returns_nan():
    return float("nan")


@hostile("not a finite number")
def returns_inf():
    return float("-inf")


@hostile("None (NoneType), not a number")
def returns_none():
    return None


@hostile("(str), not a number")
def returns_text():
    return "1" * 1_000_000


@hostile("not a finite number")
def returns_a_huge_integer():
    return 10**4000


@hostile("not a finite number")
def returns_a_signalling_decimal():
    return Decimal("Infinity")


@hostile("(ndarray), not a number")
def returns_an_array():
    import numpy as np

    return np.ones(3)


@hostile("(generator), not a number")
def returns_a_generator():
    return (number for number in range(3))


@hostile("it must be a plain function, not an async one")
def returns_a_coroutine():
    async def later():
        return 1.0

    return later()


@hostile("RecursionError")
def returns_itself_within_itself():
    scores: dict = {}
    scores["score"] = scores
    return scores


@hostile("timed out")
def returns_a_number_that_hangs():
    class Slow(float):
        def __float__(self):
            sleep_for_ever()

    return Slow(1)


@hostile("not a number")
def returns_what_cannot_be_shown():
    class Hidden:
        def __repr__(self):
            raise KeyError("x")

        def __getattr__(self, name):
            raise AttributeError(name)

    return Hidden()


# Time and memory


@hostile("timed out")
def hangs():
    sleep_for_ever()


@hostile("timed out")
def spins():
    while True:
        pass


@hostile("timed out")
def hangs_and_ignores_signals():
    for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)
    sleep_for_ever()


@hostile("timed out")
def stops_itself():
    os.kill(os.getpid(), signal.SIGSTOP)


@hostile(1.0)
def leaves_threads_that_never_end():
    threading.Thread(target=sleep_for_ever).start()
    return 1.0


@hostile("ran out of memory")
def eats_memory_at_once():
    return len(bytearray(10 << 30))


@hostile("ran out of memory")
def eats_memory_by_and_by():
    held = []
    while True:
        held.append(bytearray(64 << 20))


@hostile("timed out")
def prints_a_gigabyte():
    while True:
        os.write(1, b"x" * (1 << 20))


# Processes


@hostile(1.0)
def forks():
    os.fork()
    return 1.0


@hostile(1.0)
def forks_and_the_child_hangs():
    if os.fork() == 0:
        sleep_for_ever()
    return 1.0


@hostile("timed out")
def forks_and_both_hang():
    os.fork()
    sleep_for_ever()


@hostile(1.0)
def daemonises():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            sleep_for_ever()
        os._exit(0)
    os.wait()
    return 1.0


@hostile(1.0)
def starts_a_program_in_a_session_of_its_own():
    subprocess.Popen(["sleep", "600"], start_new_session=True)
    return 1.0


@hostile("exit code 3")
def exits():
    os._exit(3)


@hostile("signal 9")
def kills_its_group():
    os.killpg(0, signal.SIGKILL)


@hostile("exit code 1")
def closes_descriptors():
    os.closerange(0, 64)
    return 1.0


@hostile("written to its pipe")
def writes_to_the_pipe():
    os.write(pipe(), b"[7, 1.0, null]\n")
    return 1.0


@hostile("written to its pipe")
def writes_half_an_answer():
    os.write(pipe(), b"[0, 1.0")
    return 1.0


@hostile("timed out")
def writes_half_an_answer_and_hangs():
    os.write(pipe(), b"[0, 1.0")
    sleep_for_ever()


# The interpreter


@hostile("written to its pipe")
def patches_json():
    json.dumps = lambda *arguments, **named: "[0, 1.0, null, 1]"
    return 1.0


@hostile("exit code 1")
def patches_os():
    def broken(*arguments):
        raise OSError("patched")

    os.write = broken
    return 1.0


@hostile(1.0)
def replaces_standard_output():
    sys.stdout = sys.stderr = None
    return 1.0


@hostile("exit code 1")
def empties_the_builtins():
    del builtins.isinstance
    return 1.0


@hostile("timed out")
def traces_every_call():
    sys.setprofile(lambda *arguments: sleep_for_ever())
    return 1.0


@hostile(1.0)
def changes_folder_and_environment():
    os.chdir("/")
    os.environ.clear()
    return 1.0


def never_reads_again(data_source, solution_str, ground_truth, extra_info=None):
    """Whoever sends more than a pipe holds would wait for ever."""
    Connection.recv_bytes = lambda self: sleep_for_ever()
    return 1.0
