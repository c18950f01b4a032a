"""Reward functions that raise, return or take what no reward function should.

Workers import this module. EXPECTED has what becomes of each function, also of those in
hostile_processes: a reward, or words of the reason that is counted.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from decimal import Decimal
from typing import Any

EXPECTED: dict[str, float | str] = {}


def hostile(expected: float | str) -> Callable[[Callable[[], Any]], Callable[..., Any]]:
    """A function without arguments as a reward function of verl's kind, by its own name."""

    def make(act: Callable[[], Any]) -> Callable[..., Any]:
        def reward(data_source, solution_str, ground_truth, extra_info=None):
            return act()

        EXPECTED[f"{act.__module__}:{act.__name__}"] = expected
        return reward

    return make


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
