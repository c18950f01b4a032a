"""Append-only CSV rows that say what was measured, where, and by which commit."""

from __future__ import annotations

import csv
import datetime
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch

from gft_kernels.env import driver, version

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
MACHINE = ("date", "commit", "device", "driver", "python", "torch", "triton", "threads")


def git_commit() -> str:
    """The short commit, with '+' where the tree differs from it; GFT_COMMIT where it is set.

    'unknown' outside a checkout or without git.
    """
    if commit := os.environ.get("GFT_COMMIT"):
        return commit
    call = lambda *args: subprocess.run(["git", *args], capture_output=True, text=True, cwd=ROOT)  # noqa: E731
    try:
        head = call("rev-parse", "--short", "HEAD")
    except OSError:
        return "unknown"
    if head.returncode:
        return "unknown"
    return head.stdout.strip() + ("+" if call("status", "--porcelain", "--", "*.py").stdout.strip() else "")


def describe_machine(device: str = "cpu") -> dict:
    """The columns MACHINE for a run on `device`."""
    return {
        "date": datetime.date.today().isoformat(),
        "commit": git_commit(),
        "device": torch.cuda.get_device_name() if device == "cuda" else f"cpu {platform.machine()}",
        "driver": driver(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": version("triton"),
        "threads": torch.get_num_threads(),
    }


def append_rows(path: Path, rows: Sequence[dict], fields: Sequence[str]) -> None:
    """Add rows to a CSV of these columns, with a header where the file is new.

    Raises:
        ValueError: the file has other columns.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists() or path.stat().st_size == 0
    if not new and (found := header(path)) != tuple(fields):
        raise ValueError(
            f"{path} has the columns {', '.join(found)}; these rows have {', '.join(fields)}: write to another file "
            "(--out)."
        )
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fields, restval="")
        if new:
            writer.writeheader()
        writer.writerows(rows)


def header(path: Path) -> tuple[str, ...]:
    with path.open(newline="") as file:
        return tuple(next(csv.reader(file)))


def read_rows(path: Path) -> list[dict]:
    """Rows of a CSV, oldest first; none where there is no such file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def newest_run(rows: Sequence[dict], **wanted: str) -> dict[str, dict]:
    """Provider -> its row of whole steps, of the latest commit that measured what is wanted."""
    fitting = [
        row for row in rows if row["mode"] in ("full", "") and all(row[key] == value for key, value in wanted.items())
    ]
    return {
        row["provider"]: row
        for row in fitting
        if (row["date"], row["commit"]) == (fitting[-1]["date"], fitting[-1]["commit"])
    }
