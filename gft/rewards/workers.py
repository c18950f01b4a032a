"""Killable processes that score untrusted model output.

A worker takes one call at a time over a pipe, and the parent holds the clock. When a call is past
its limit, the worker is killed and that one item gets an error. The other items go on.

A worker is a fresh interpreter. It imports `serve` and the reward function, and not the caller's
main module, which may import torch. It answers with a line of JSON, which is only data
and names its call: a reward function that writes to the pipe cannot hold up the parent, nor make it
take one answer for another.
This works on POSIX only, because descriptors are handed over and process groups are killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import time
import uuid
from collections import deque
from collections.abc import Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

from ..stop import check
from .calls import RewardFunction, Scored
from .reap import MARK, end_marked
from .serve import OUT_OF_MEMORY

START_SECONDS = 120.0  # to start an interpreter and import the reward function
LONGEST_ANSWER = 1 << 16  # bytes of a worker's answer


class Limits(NamedTuple):
    """What one call may take.

    memory_mib comes on top of what the worker holds once the reward function is imported.
    """

    seconds: float
    memory_mib: int


class _Worker:
    """One process, as the parent sees it: starting, then idle, then busy with call number `job`."""

    def __init__(self, reward: str | bytes, limits: Limits) -> None:
        self.limits = limits
        self.setup = pickle.dumps((reward, *limits))
        self.mark = uuid.uuid4().hex
        self.start()

    def start(self) -> None:
        self.job: int | None = None
        self.answer = b""
        self.ready = self.broken = False
        self.deadline = time.monotonic() + START_SECONDS
        self.pipe, theirs = Pipe()
        _give_up_sending(self.pipe, self.limits.seconds)
        path = [str(entry) for entry in sys.path]
        ours = str(Path(__file__).parents[2])  # the same package as here, whatever comes first in the path
        code = (
            f"import sys; sys.path[:] = {[ours, *path]!r}; from gft.rewards.serve import serve; "
            f"sys.path[:] = {path!r}; serve({theirs.fileno()})"
        )
        with theirs:  # a session of its own: Ctrl-C is for the parent, and a kill reaches the worker's children too
            self.process = subprocess.Popen(
                [sys.executable, "-c", code],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=os.environ | {MARK: self.mark},
                start_new_session=True,
            )
        with contextlib.suppress(ConnectionError):
            self.pipe.send_bytes(self.setup)

    def stop(self) -> None:
        if self.pipe.closed:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        end_marked(self.mark)
        self.pipe.close()

    def restart(self) -> None:
        self.stop()
        self.start()

    def submit(self, job: int, arguments: Sequence[Any]) -> None:
        self.job, self.deadline = job, time.monotonic() + self.limits.seconds
        with contextlib.suppress(OSError):  # it died while it was idle, or reads no more: receive() will say so
            self.pipe.send_bytes(json.dumps((job, arguments), default=str).encode())

    def receive(self) -> Scored | None:
        """The worker's answer; None while it is not complete and the deadline is ahead.

        Without an answer the worker is broken.
        """
        try:
            if self.pipe.poll():
                self._read()
            if self.answer.endswith(b"\n"):
                return self._answered()
            if time.monotonic() < self.deadline:
                return None
            reason = f"timed out after {self.limits.seconds if self.ready else START_SECONDS:g} s"
        except (ValueError, TypeError):  # no JSON, or not the answer to this call
            reason = "something else than the worker's answer was written to its pipe"
        except (EOFError, OSError):
            reason = self._epitaph()
        self.job, self.broken = None, True
        return Scored(None, reason)

    def _read(self) -> None:
        chunk = os.read(self.pipe.fileno(), LONGEST_ANSWER)
        if not chunk:
            raise EOFError
        self.answer += chunk
        if len(self.answer) > LONGEST_ANSWER:
            raise ValueError("an answer without end")

    def _answered(self) -> Scored:
        job, value, error = json.loads(self.answer)
        if job != self.job or None not in (value, error):
            raise ValueError(f"an answer to call {job} in place of {self.job}")
        self.job, self.answer = None, b""
        return Scored(value, error)

    def _epitaph(self) -> str:
        """Why the worker ended."""
        try:
            code = self.process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            return "the worker closed its pipe"
        if code == OUT_OF_MEMORY:
            return f"ran out of memory (limit {self.limits.memory_mib} MiB)"
        return f"the worker process ended with {f'signal {-code}' if code < 0 else f'exit code {code}'}"

    def greet(self) -> None:
        """Take the message that says the reward function is loaded, if it is complete."""
        scored = self.receive()
        if scored is not None and scored.error is not None:
            raise ValueError(f"a worker could not load the reward function: {scored.error}")
        self.ready = scored is not None


def _give_up_sending(pipe: Connection, seconds: float) -> None:
    """Let a send to a worker that does not read fail in the end: a long response fills the pipe."""
    whole, rest = divmod(seconds, 1)
    with socket.socket(fileno=os.dup(pipe.fileno())) as end:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(whole), max(1, int(rest * 1e6))))


class Workers:
    """`count` processes with one reward function; `run` scores a list of calls, in order.

    Raises:
        ValueError: the reward function cannot be imported by a worker.
    """

    def __init__(self, reward: str | RewardFunction, count: int, limits: Limits) -> None:
        payload = reward if isinstance(reward, str) else _pickled(reward)
        self._workers: list[_Worker] = []
        try:
            for _ in range(count):
                self._workers.append(_Worker(payload, limits))
            for worker in self._workers:
                while not worker.ready:
                    worker.pipe.poll(max(0.0, worker.deadline - time.monotonic()))
                    worker.greet()
        except BaseException:
            self.close()
            raise

    def run(self, calls: Sequence[Sequence[Any]]) -> list[Scored]:
        """Score every call; whatever happens, no worker is left with a call of this run."""
        if not self._workers:
            raise ValueError("the reward workers are closed")
        results: dict[int, Scored] = {}
        pending = deque(range(len(calls)))
        try:
            while len(results) < len(calls):
                check()
                self._hand_out(calls, pending)
                self._collect(results)
        finally:
            for worker in self._workers:
                if worker.job is not None:
                    worker.restart()
        return [results[i] for i in range(len(calls))]

    def _hand_out(self, calls: Sequence[Sequence[Any]], pending: deque[int]) -> None:
        for worker in self._workers:
            if pending and worker.ready and worker.job is None:
                if worker.process.poll() is not None:  # it died between two calls: no response is to blame
                    worker.restart()
                    continue
                job = pending.popleft()
                worker.submit(job, calls[job])

    def _collect(self, results: dict[int, Scored]) -> None:
        """Wait for the first answer or deadline, then take every answer there is.

        Workers that failed are replaced.
        """
        engaged = [worker for worker in self._workers if worker.job is not None or not worker.ready]
        nearest = min(worker.deadline for worker in engaged)
        readable = wait([worker.pipe for worker in engaged], timeout=max(0.0, nearest - time.monotonic()))
        for worker in engaged:
            if worker.pipe not in readable and time.monotonic() < worker.deadline:
                continue
            if not worker.ready:
                worker.greet()
                continue
            job = worker.job
            assert job is not None  # it is ready and engaged, so it has a call
            scored = worker.receive()
            if scored is not None:
                results[job] = scored
            if worker.broken:
                worker.restart()

    def close(self) -> None:
        """End every worker at once. Safe to call twice."""
        while self._workers:
            self._workers[-1].stop()
            self._workers.pop()


def _pickled(function: RewardFunction) -> bytes:
    """The function by reference: the worker imports it from its module.

    A function of the main module cannot be found that way, because the worker's main module is
    another.
    """
    advice = "define it at the top level of a module that can be imported, and not in the script that is run"
    if getattr(function, "__module__", None) == "__main__":
        raise ValueError(f"workers cannot import the reward function {function!r}: {advice}.")
    try:
        return pickle.dumps(function)
    except Exception as error:
        raise ValueError(f"workers cannot import the reward function {function!r} ({error}): {advice}.") from error
