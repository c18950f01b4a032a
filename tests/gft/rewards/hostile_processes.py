"""Reward functions that start processes, or take the worker's own apart.

Workers import this module.
"""

from __future__ import annotations

import builtins
import json
import os
import signal
import socket
import subprocess
import sys
from multiprocessing.connection import Connection

from .hostile_functions import hostile, sleep_for_ever


def pipe() -> int:
    """The descriptor that the worker answers on."""
    for number in range(3, 64):
        try:
            socket.socket(fileno=os.dup(number)).close()
        except OSError:
            continue
        return number
    raise AssertionError("no pipe")


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
