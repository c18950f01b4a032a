"""The embedded comparison over seeds: means, their intervals, and the figure of its curves."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .style import INK, OWN, SMALL, Row, canvas, save, spread

COLOURS = {
    "SFT on experts": "#4f86c6",
    "SFT on the mix": "#8e959d",
    "GFT": OWN,
    "GFT, given": "#8a5fc0",
    "GRPO": "#c77d2e",
}
PANELS = {"mean_of_16": "held-out accuracy, mean of 16 samples", "greedy": "held-out accuracy, greedy"}
LOWEST, HIGHEST = 4, 97  # per cent, where a method's name may stand
GAP = 8.5  # per cent between two names
STUDENT_T: Sequence[float] = (  # its 97.5% point for 1, 2, ... 19 degrees of freedom
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093),
)


class Interval(NamedTuple):
    """The mean over seeds is `mean` +- `half`, 95%."""

    mean: float
    half: float


def interval(values: Sequence[float]) -> Interval:
    """Mean of independent values, and half the width of its 95% interval by Student's t.

    Raises:
        ValueError: fewer than 2 values, or more than 20.
    """
    if not 2 <= len(values) <= len(STUDENT_T) + 1:
        raise ValueError(f"{len(values)} values: an interval is known for 2 to {len(STUDENT_T) + 1}.")
    half = STUDENT_T[len(values) - 2] * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(statistics.mean(values), half)


def newest(rows: Sequence[Row]) -> list[Row]:
    """The rows of the newest run. Where a run has a seed twice, the later row counts."""
    run = [row for row in rows if (row["date"], row["commit"]) == (rows[-1]["date"], rows[-1]["commit"])]
    return list({(row["seed"], row["method"], row.get("step")): row for row in run}.values())


def per_cent(rows: Sequence[Row], key: str, **wanted: str) -> Interval:
    """An accuracy over the seeds, of the rows whose columns are as wanted."""
    return interval([100 * float(r[key]) for r in rows if all(r[name] == value for name, value in wanted.items())])


def table(rows: Sequence[Row]) -> str:
    """Means over the seeds of one run; for every method, what it reads per update."""
    seeds = len({row["seed"] for row in rows})
    lines = [
        f"| mean of {seeds} seeds ± half its 95% interval (Student's t) | greedy | mean of 16 samples | "
        "sequences per update, of them own samples |",
        "|---|---|---|---|",
    ]
    for method, row in {row["method"]: row for row in rows}.items():
        shares = (per_cent(rows, key, method=method) for key in ("greedy", "mean_of_16"))
        read = f"{row['sequences_per_update']}, {row['own_per_update']}" if row["updates"] != "0" else ""
        lines.append(f"| {method} | {' | '.join(f'{mean:.1f}% ± {half:.1f}' for mean, half in shares)} | {read} |")
    return "\n".join(lines)


def accuracy(rows: Sequence[Row], path: Path) -> None:
    """Held-out accuracy against updates: means over the seeds, their 95% intervals as bands."""
    with canvas(3.1, 1, len(PANELS)) as (figure, axes):
        figure.subplots_adjust(left=0.075, right=0.84, top=0.89, bottom=0.15, wspace=0.62)
        for axis, (key, title) in zip(axes[0], PANELS.items(), strict=True):
            ends = {method: draw(axis, rows, key, method) for method in COLOURS}
            heights = spread([end for _, end in ends.values()], GAP, LOWEST, HIGHEST)
            for (method, (step, _)), height in zip(ends.items(), heights, strict=True):
                axis.annotate(
                    method,
                    (step, height),
                    (5, 0),
                    textcoords="offset points",
                    va="center",
                    color=COLOURS[method],
                    weight="bold" if method == "GFT" else "normal",
                    fontsize=SMALL,
                    annotation_clip=False,
                )
            axis.set(ylim=(0, 100), xlim=(0, None), xlabel="updates", title=title)
            axis.set_yticks(range(0, 101, 25), [f"{tick}%" for tick in range(0, 101, 25)])
            axis.tick_params(labelleft=axis is axes[0][0])  # the second panel's would touch the first one's names
            axis.grid(alpha=0.25, color=INK)
        save(figure, path, rows)


def draw(axis: Any, rows: Sequence[Row], key: str, method: str) -> tuple[int, float]:
    """One method's mean and band, from the base on; where the line ends."""
    steps = sorted({int(row["step"]) for row in rows})
    found = [per_cent(rows, key, method=method if step else "base", step=str(step)) for step in steps]
    means = [mean for mean, _ in found]
    low, high = [mean - half for mean, half in found], [mean + half for mean, half in found]
    axis.plot(steps, means, color=COLOURS[method], linewidth=2.2 if method == "GFT" else 1.5)
    axis.fill_between(steps, low, high, color=COLOURS[method], alpha=0.2, linewidth=0)
    return steps[-1], means[-1]
