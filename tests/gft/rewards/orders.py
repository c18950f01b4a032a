"""A reward function that does what the response says. Workers import this module, and no test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any

NAME = f"{__name__}:obey"


def obey(data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None) -> Any:
    order, _, argument = solution_str.partition(" ")
    if order == "value":
        return json.loads(argument)
    if order == "raise":
        raise KeyError(argument)
    if order == "sleep":
        time.sleep(float(argument))
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
    if order == "told":
        return [data_source, ground_truth, extra_info] == ["src", "42", {"prompt": "p", "truncated": True}]
    raise AssertionError(order)


class Grader:
    @staticmethod
    def grade(data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None) -> float:
        return 0.25
