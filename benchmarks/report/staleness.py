"""Which rows are older than the code that they measured."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Sequence
from pathlib import Path

from ..architectures import tables as architectures
from ..record import ROOT
from ..sparse import tables as sparse
from . import plot, tables
from .style import Row

MEASURED = ("gft_kernels/losses", "gft_kernels/engines", "gft_kernels/ops", "gft_kernels/head.py")
NOT_ON_A_CPU = ":(exclude)gft_kernels/engines/triton"
# Rows that tests measure again: tests/benchmarks/test_demo.py and test_architectures.py.
RUN_AGAIN = ("demo-table", "demo.svg", *architectures.TABLES)
SHOWN = 4  # changed files that a warning names


def shown_rows() -> dict[str, list[Row]]:
    """Table or figure -> the measured rows that it shows, but for those that a test runs again."""
    inputs = list(sparse.newest().values())
    found = {f"{device}-table": tables.head_rows(device) for device in plot.SHAPES}
    found |= {
        "summary-table": list(tables.summary_run().values()),
        "loop-table": [row for run in tables.loop_runs() for row in run.values()],
        "sparse-summary": list(sparse.timed().values()),
        "sparse-time": list(sparse.timed().values()),
        "sparse-variants": [row for row in inputs if row["eps"]],
        "sparse-inputs": [row for row in inputs if row["error"]],
        "sparse-training": sparse.trained(),
    }
    return found | {name: rows for name, (_, rows) in plot.figures().items() if name not in RUN_AGAIN}


def stale(rows: Sequence[Row], root: Path = ROOT) -> list[str]:
    """A warning for each commit of these rows since which the code they measured has changed."""
    found = []
    for commit in dict.fromkeys(row["commit"] for row in rows):
        on_cpu = all(row["device"].startswith("cpu") for row in rows if row["commit"] == commit)
        changed = changes(commit.removesuffix("+"), (*MEASURED, *([NOT_ON_A_CPU] if on_cpu else [])), root)
        if changed is None:
            found.append(f"rows of {commit}, a commit that this checkout does not have")
        elif commit.endswith("+"):
            found.append(f"rows of {commit}: measured on a tree with changes that were not committed")
        elif changed:
            names = [path.removeprefix("gft_kernels/") for path in changed]
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            found.append(f"rows of {commit}; gft_kernels changed since in: {', '.join(names[:SHOWN])}{more}")
    return found


def changes(commit: str, paths: Sequence[str], root: Path) -> list[str] | None:
    """Files whose code differs between a commit and the tree; None without that commit or git."""
    names = _git(root, "diff", "--name-only", "--no-renames", commit, "--", *paths)
    if names is None:
        return None
    return [name for name in names.splitlines() if _code(_git(root, "show", f"{commit}:{name}")) != _now(root / name)]


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=root)
    except OSError:
        return None
    return None if done.returncode else done.stdout


def _now(path: Path) -> str | None:
    return _code(path.read_text(encoding="utf-8") if path.exists() else None)


def _code(text: str | None) -> str | None:
    """A source without comments, docstrings and layout: none of them changes what is measured."""
    if text is None:
        return None
    tree = ast.parse(text)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            node.body = body[1:]  # type: ignore[attr-defined]
    return ast.dump(tree)


def warnings() -> list[str]:
    """Every warning once, with the tables and figures that it is about."""
    about: dict[str, list[str]] = {}
    for name, rows in shown_rows().items():
        for warning in stale(rows):
            about.setdefault(warning, []).append(name)
    return [f"{warning} ({', '.join(names)})" for warning, names in about.items()]
