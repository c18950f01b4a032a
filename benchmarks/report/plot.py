"""python -m benchmarks.report.plot: which figures there are, and the rows that each is drawn from.

Each SVG carries a digest of its rows: a test compares it with that of the rows present.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ..record import RESULTS, ROOT, newest_run, read_rows
from . import demo
from .bars import bars
from .scaling import scaling
from .style import Row
from .training import training

FIGURES = ROOT / "benchmarks" / "figures"
SHAPES = {"cpu": ("small", "1024"), "gpu": ("published", "8192")}  # device -> head and N that the figures show
Draw = Callable[[Sequence[Row], Path], None]


def heads(rows: Iterable[Row]) -> list[Row]:
    """The rows of heads that a user would choose.

    The bare GEMMs are no head; where `auto` takes Triton, our `chunked` engine is nobody's choice.
    """
    found = [row for row in rows if row["provider"] not in ("bare-gemms", "all")]
    triton = any(row["provider"] == "gft-triton" and row["ms"] for row in found)
    return [row for row in found if not (triton and row["provider"].endswith("-chunked"))]


def batch_rows(rows: Sequence[Row], head: str, N: str) -> list[Row]:
    """The newest run of a GFT batch of one shape."""
    return heads(newest_run(rows, case=f"{head} gft-batch", N=N, inputs="random").values())


def scaling_rows(rows: Sequence[Row], head: str) -> list[Row]:
    """The timed rows of every size, of the newest commit that measured several vocabularies."""
    commit = next((row["commit"] for row in reversed(rows) if row["case"].startswith("V=")), "")
    swept = [row for row in rows if row["case"] == f"{head} gft-batch" or row["case"].startswith("V=")]
    sizes = dict.fromkeys((row["case"], row["N"]) for row in swept if row["commit"] == commit)
    runs = [newest_run(swept, case=case, N=N, commit=commit) for case, N in sizes]
    return [row for row in heads(row for run in runs for row in run.values()) if row["ms"]]


def figures(folder: Path = RESULTS) -> dict[str, tuple[Draw, list[Row]]]:
    """File name -> (how it is drawn, its rows), for the figures that have rows in `folder`."""
    found: dict[str, tuple[Draw, list[Row]]] = {
        "sparse-training.svg": (training, read_rows(folder / "sparse_training.csv")),
        "demo.svg": (demo.accuracy, demo.newest(read_rows(folder / "demo_curves.csv"))),
    }
    for device, (head, N) in SHAPES.items():
        rows = read_rows(folder / f"{device}.csv")
        found[f"{device}.svg"] = (bars, batch_rows(rows, head, N))
        found[f"{device}-scaling.svg"] = (scaling, scaling_rows(rows, head))
    return {name: (draw, rows) for name, (draw, rows) in found.items() if rows}


def main() -> None:
    for name, (draw, rows) in figures().items():
        draw(rows, FIGURES / name)


if __name__ == "__main__":
    main()
