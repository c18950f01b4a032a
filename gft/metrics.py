"""Numbers of a run: running means, metrics.jsonl, peak memory."""

from __future__ import annotations

import json
import math
import sys
from collections import defaultdict
from pathlib import Path
from typing import TextIO

import torch


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

    def result(self) -> dict[str, float]:
        return {name: total / self.weights[name] for name, total in self.sums.items() if self.weights[name]}


class MetricsLog:
    """metrics.jsonl: one JSON object a line, flushed at once.

    NaN and infinity are written as null, because JSON has no word for them.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file: TextIO | None = None

    def open(self) -> None:
        """Begin the file and replace an older one, once the run has passed its checks."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.unlink(missing_ok=True)  # it may be a link, and what it leads to is not the run's
        self.file = self.path.open("w", encoding="utf-8")

    def write(self, row: dict) -> None:
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        assert self.file is not None, "not opened"
        self.file.write(json.dumps(clean) + "\n")
        self.file.flush()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.file is not None:
            self.file.close()


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
