"""Where the fused loss spends its time.

Each part of the Triton engine, forward and backward, by events on the device.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

PARTS = {  # name -> (module, the function that does it)
    "head_reference": ("gft_kernels.engines.triton.engine", "head_reference"),
    "head_fwd": ("gft_kernels.engines.triton.engine", "head_forward"),
    "finalise": ("gft_kernels.engines.triton.engine", "_finalise"),
    "rescale": ("gft_kernels.engines.triton.engine", "rescale"),
    "dH": ("gft_kernels.engines.accumulate", "matmul"),
    "dW": ("gft_kernels.engines.accumulate", "add_matmul"),
}


class Clock:
    """Adds up the time of named parts: CUDA events, or the host's clock on a CPU.

    A part inside another counts for the outer one.
    """

    def __init__(self, cuda: bool) -> None:
        self.cuda, self.inside = cuda, False
        self.spans: list[tuple[str, Any, Any]] = []

    def now(self) -> Any:
        if not self.cuda:
            return time.perf_counter() * 1e3
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def timed(self, name: str, function: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self.inside:
                return function(*args, **kwargs)
            self.inside, start = True, self.now()
            try:
                return function(*args, **kwargs)
            finally:
                self.inside = False
                self.spans.append((name, start, self.now()))

        return call

    def totals(self) -> dict[str, float]:
        """Milliseconds of each part since the last call."""
        if self.cuda:
            torch.cuda.synchronize()
        found = dict.fromkeys(PARTS, 0.0)
        for name, start, end in self.spans:
            found[name] = found.get(name, 0.0) + (start.elapsed_time(end) if self.cuda else end - start)
        self.spans = []
        return found


@contextmanager
def _watched(clock: Clock) -> Iterator[None]:
    """Every part replaced by itself, timed."""
    patches = [
        mock.patch(f"{module}.{name}", clock.timed(part, _find(module, name))) for part, (module, name) in PARTS.items()
    ]
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()


def _find(module: str, name: str) -> Callable:
    return getattr(__import__(module, fromlist=[name]), name)


def kernel_times(step: Callable[[], object], cuda: bool, rounds: int = 5) -> dict[str, float]:
    """Median milliseconds of each part in one step.

    "rest" is everything else: gathers, casts, launches, waits.
    """
    clock = Clock(cuda)
    found: list[dict[str, float]] = []
    with _watched(clock):
        for _ in range(rounds + 1):
            start = clock.now()
            step()
            clock.spans.append(("rest", start, clock.now()))
            totals = clock.totals()
            totals["rest"] -= sum(totals[name] for name in PARTS)
            found.append(totals)
    return {name: statistics.median(totals[name] for totals in found[1:]) for name in found[0]}
