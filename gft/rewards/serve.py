"""A worker's life, in a process of its own, beside a reward function that may do anything."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
from multiprocessing.connection import Connection
from pathlib import Path

from .calls import Scored, call_reward, import_reward, reason_of
from .reap import MARK, end_marked
from .signatures import caller_of

OUT_OF_MEMORY = 77  # exit code of a worker that ran into its memory limit


def serve(descriptor: int) -> None:
    """Load the reward function, say so, answer calls.

    It ends when the parent closes the pipe.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # the parent decides when a worker ends
        signal.signal(number, signal.SIG_IGN)
    pipe, worker, mark = Connection(descriptor), os.getpid(), os.environ[MARK]
    reward, seconds, memory_mib = pickle.loads(pipe.recv_bytes())
    try:
        function = caller_of(import_reward(reward) if isinstance(reward, str) else pickle.loads(reward))
    except Exception as error:
        return _send(pipe, None, Scored(None, f"{type(error).__name__}: {error}"[:1000]))
    _limit_memory(memory_mib)
    _send(pipe, None, Scored(0.0, None))
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            job, arguments = json.loads(pipe.recv_bytes())
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, 2 * seconds + 1)  # ends a stuck worker whose parent was killed
            try:
                scored = call_reward(function, [arguments])
            except MemoryError:
                os._exit(OUT_OF_MEMORY)
            except BaseException as error:  # SystemExit and its like: the parent decides when a worker ends
                scored = Scored(None, reason_of(error))
            if os.getpid() != worker:  # a fork of the reward function came back too: it would answer a second time
                os._exit(0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            _send(pipe, job, scored)
    end_marked(mark)  # the parent is gone, or it would have killed this worker


def _send(pipe: Connection, job: int | None, scored: Scored) -> None:
    answer = memoryview(json.dumps([job, scored.value, scored.error]).encode() + b"\n")
    while answer:
        answer = answer[os.write(pipe.fileno(), answer) :]


def _limit_memory(mib: int) -> None:
    """Cap the address space at what is mapped now plus `mib`, on platforms that can."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        statm = Path("/proc/self/statm")
        mapped = int(statm.read_text().split()[0]) * resource.getpagesize() if statm.exists() else 0
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        limit = mapped + (mib << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
