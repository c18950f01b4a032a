"""Numbers of a run: running means, metrics.jsonl, peak memory."""

from __future__ import annotations

import json
import math
import os
import sys
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from io import FileIO
from pathlib import Path

import torch

from .distributed import gather, is_first


class Mean:
    """Weighted means of named values. An addition that lacks a name leaves its mean as it is."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = defaultdict(float)
        self.weights: dict[str, float] = defaultdict(float)

    def add(self, weight: float, **values: float) -> None:
        if not weight:  # the mean of nothing is NaN
            return
        for name, value in values.items():
            self.sums[name] += weight * value
            self.weights[name] += weight

    def of_all_ranks(self) -> Mean:
        """The means over what every rank added."""
        both = Mean()
        for sums, weights in gather((dict(self.sums), dict(self.weights))):
            for name in sums:
                both.sums[name] += sums[name]
                both.weights[name] += weights[name]
        return both

    def result(self) -> dict[str, float]:
        return {name: total / self.weights[name] for name, total in self.sums.items() if self.weights[name]}


class MetricsLog:
    """metrics.jsonl: one JSON object a line, handed to the system at once.

    NaN and infinity are written as null, because JSON has no word for them. Rows that the disk has
    no room for are kept and written with the next ones.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file: FileIO | None = None
        self.offset = 0  # bytes of all rows, those that wait included
        self._waiting = b""
        self.also: Callable[[dict], None] | None = None  # who is given every row too

    def open(self, offset: int = 0) -> None:
        """Begin the file and replace an older one, or cut the run's own back to `offset` bytes.

        Call it once the run has passed its checks.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if offset == 0:
            self.path.unlink(missing_ok=True)  # it may be a link, and what it leads to is not the run's
        self.file = FileIO(self.path, "a")  # without a buffer, so that what did not fit is known
        self.file.truncate(min(offset, self.path.stat().st_size))
        self.offset = self.path.stat().st_size

    def write(self, row: dict) -> None:
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        line = (json.dumps(clean) + "\n").encode()
        self.offset += len(line)
        self._waiting += line
        with suppress(OSError):
            self._write()
        if self.also is not None:
            self.also(row)

    def flush(self) -> None:
        """Wait until every row is on the disk.

        Raises:
            OSError: there is no room for them.
        """
        self._write()
        os.fsync(self._opened().fileno())

    def _write(self) -> None:
        while self._waiting:
            self._waiting = self._waiting[self._opened().write(self._waiting) :]

    def _opened(self) -> FileIO:
        assert self.file is not None, "not opened"
        return self.file

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, kind: object, *exception: object) -> None:
        if self.file is None:
            return
        try:
            self._write()
        except OSError:
            if kind is None:  # else there is a reason already that the run ended for
                raise
        finally:
            self.file.close()


class Unwritten(MetricsLog):
    """The log of a rank that writes none."""

    def open(self, offset: int = 0) -> None:
        self.file, self.offset = FileIO(os.devnull, "a"), offset

    def flush(self) -> None:
        pass


def metrics_log(path: Path) -> MetricsLog:
    """The log of a run, which rank 0 writes."""
    return MetricsLog(path) if is_first() else Unwritten(path)


def read_metrics(path: Path) -> list[dict]:
    """The rows of a metrics.jsonl."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def peak_memory_mib() -> float:
    """Peak of the GPU's allocator; without a GPU, of this process's resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    try:
        import resource
    except ImportError:
        return math.nan
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
