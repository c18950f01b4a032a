"""What `gft report` reads: runs, evaluations, and whatever a killed process left of them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..estimates import Estimate
from ..evaluate import accuracy
from ..held_out import FOLDER, SAMPLES, Answer, read_answers
from ..options import OptionError

METRICS, RUN, EVALUATION = "metrics.jsonl", "run.json", "eval.json"


@dataclass(frozen=True)
class Run:
    """A run, or an evaluation by `gft eval`, which is one row after step 0."""

    name: str
    path: Path
    rows: list[dict[str, Any]]  # of metrics.jsonl, by step
    config: dict[str, Any] = field(default_factory=dict)
    samples: int = 0  # of an evaluated prompt
    unread: int = 0  # lines that are no JSON object with a step
    is_evaluation: bool = False

    @property
    def step(self) -> int:
        """The last step that is told of."""
        return max((row["step"] for row in self.rows), default=0)

    @property
    def state(self) -> str:
        """Whether the run has come to its end."""
        steps = self.config.get("steps")
        if self.is_evaluation:
            return "evaluation"
        return f"{self.step} of {steps} updates" if steps and self.step < steps else f"{self.step} updates"

    @property
    def evaluated(self) -> list[int]:
        """The steps with an evaluation."""
        return [row["step"] for row in self.rows if "eval_greedy" in row]

    @property
    def last_evaluation(self) -> dict[str, Any]:
        """The row of the last evaluation; empty without one."""
        return next((row for row in reversed(self.rows) if "eval_greedy" in row), {})

    def series(self, key: str) -> list[tuple[int, float | None]]:
        """(step, value) of every row that has the key; None where that is no finite number."""
        return [(row["step"], _number(row[key])) for row in self.rows if key in row]

    def has(self, key: str) -> bool:
        return any(value is not None for _, value in self.series(key))

    def last(self, key: str) -> float | None:
        """The last value of a key, if it is a number."""
        found = self.series(key)
        return found[-1][1] if found else None

    def estimate(self, key: str) -> Estimate | None:
        """The last value of an accuracy with its interval."""
        row = self.last_evaluation
        value, low, high = (_number(row.get(f"eval_{key}{end}")) for end in ("", "_low", "_high"))
        nan = math.nan
        return None if value is None else Estimate(value, nan if low is None else low, nan if high is None else high)

    def answers(self, step: int) -> list[Answer]:
        """The answers that were kept of the evaluation after `step`."""
        path = self.path / SAMPLES if self.is_evaluation else self.path / FOLDER / f"step-{step}.jsonl"
        try:
            return read_answers(path)
        except OSError:
            return []


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs in the folders; one without metrics stands for the runs in it.

    Raises:
        OptionError: there is none.
    """
    folders = list(dict.fromkeys(folder.resolve() for path in paths for folder in _folders(path)))
    return [_read(folder, name) for folder, name in zip(folders, _names(folders), strict=True)]


def _folders(path: Path) -> list[Path]:
    if _is_run(path):
        return [path]
    inside = sorted(entry for entry in path.iterdir() if _is_run(entry)) if path.is_dir() else []
    if not inside:
        what = "holds neither" if path.is_dir() else "is no folder with"
        raise OptionError(f"{path} {what} {METRICS} of gft train nor {EVALUATION} of gft eval: give the --out of one.")
    return inside


def _is_run(path: Path) -> bool:
    return any((path / name).is_file() for name in (METRICS, EVALUATION))


def _names(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell the folders apart."""
    parts = [folder.parts for folder in folders]
    length = 1
    while len({p[-length:] for p in parts}) < len(parts) and length < max(map(len, parts)):
        length += 1
    return ["/".join(p[-length:]) for p in parts]


def _read(path: Path, name: str) -> Run:
    if not (path / METRICS).is_file():
        return _read_evaluation(path, name)
    rows, unread = read_rows(path / METRICS)
    config = _object(path / RUN).get("config")
    config = config if isinstance(config, dict) else {}
    part = config.get("evaluate")
    samples = part.get("eval_samples") if isinstance(part, dict) else 0
    return Run(name, path, rows, config, samples if isinstance(samples, int) else 0, unread)


def _read_evaluation(path: Path, name: str) -> Run:
    record = _object(path / EVALUATION)
    asked = record.get("identity")
    asked = asked if isinstance(asked, dict) else {}
    samples = asked["samples"] if isinstance(asked.get("samples"), int) else 0
    run = Run(name, path, [], asked, samples, is_evaluation=True)
    row: dict[str, Any] = {"step": 0, **accuracy(run.answers(0), samples).row()}
    kl = record.get("kl")
    for key, found in (kl if isinstance(kl, dict) else {}).items():
        row[f"base_{key}"] = found[0] if isinstance(found, list) and found else None
    return Run(name, path, [row], asked, samples, is_evaluation=True)


def read_rows(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The rows of a metrics.jsonl by step, and how many lines could not be read.

    The last line may be half a line, where the run is being written or was killed. What is told
    twice of a step, by a run that went on, is taken as it was told last.
    """
    rows: dict[tuple[int, bool], dict[str, Any]] = {}
    unread = 0
    for line in path.read_bytes().splitlines():
        try:
            row = json.loads(line)
            rows[int(row["step"]), "eval_greedy" in row] = row | {"step": int(row["step"])}
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            unread += 1
    return [rows[place] for place in sorted(rows)], unread


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _number(value: Any) -> float | None:
    try:
        return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None
    except OverflowError:
        return None
