"""A reward function that does what the response says. Workers import this module, and no test."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np

NAME = f"{__name__}:obey"


def is_socket(descriptor: int) -> bool:
    try:
        return stat.S_ISSOCK(os.fstat(descriptor).st_mode)
    except OSError:
        return False


async def soon() -> float:
    return 1.0


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError


def unspeakable() -> float:
    raise Unspeakable


RETURNS: dict[str, Callable[[], Any]] = {
    "numpy float": lambda: np.float32(0.5),
    "numpy bool": lambda: np.bool_(True),
    "numpy scalar array": lambda: np.array(0.25),
    "decimal": lambda: Decimal("0.5"),
    "numpy nan": lambda: np.float64("nan"),
    "numpy array": lambda: np.array([1.0]),
    "tuple": lambda: (1.0, 2.0),
    "complex": lambda: 1j,
    "async": soon,
    "unspeakable": unspeakable,
}


def obey(data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None) -> Any:
    order, _, argument = solution_str.partition(" ")
    if order == "value":
        return json.loads(argument)
    if order == "raise":
        raise KeyError(argument)
    if order == "sleep":
        time.sleep(float(argument))
        return 1.0
    if order == "return":
        return RETURNS[argument]()
    if order == "write":  # to the descriptor of the pipe, as no reward function should
        (pipe,) = (number for number in range(3, 100) if is_socket(number))
        os.write(pipe, json.loads(argument).encode())
        return 1.0
    if order == "exit":
        os._exit(1)
    if order == "allocate":
        return float(len(bytearray(10 << 30)))
    if order == "huge":
        return 10**400
    if order == "pid":
        return os.getpid()
    if order == "torch":
        return "torch" in sys.modules
    if order == "child":
        return subprocess.Popen(["sleep", "60"]).pid
    if order == "session":
        return subprocess.Popen(["sleep", "60"], start_new_session=True).pid
    if order == "told":
        return [data_source, ground_truth, extra_info] == ["src", "42", {"prompt": "p", "truncated": True}]
    raise AssertionError(order)


class Grader:
    @staticmethod
    def grade(data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None) -> float:
        return 0.25
