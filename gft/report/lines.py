"""What is drawn of runs: the lines of a panel, their gaps, running means and bounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from .panels import SOURCES, Panel
from .runs import Run

MOST_POINTS = 300  # of a line: more are narrower than a pixel
SMOOTH_FROM = 40  # points of a line that has a running mean
WINDOW = 20  # a running mean is over this part of the points


class Point(NamedTuple):
    """A point of a line; y is None where the line has a gap."""

    x: float
    y: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Line:
    """What is drawn. Where there are several runs, `hue` and `mark` tell them apart, and `dash` the
    numbers of one; else all three tell the numbers apart.
    """

    label: str
    hue: int
    mark: int
    dash: int
    points: list[Point]
    mean: list[Point] = field(default_factory=list)  # a running mean, if there are many points


def lines_of(panel: Panel, runs: Sequence[Run]) -> list[Line]:
    """The lines of a panel: one for every run and every number of it that has a value.

    Counts that are all 0 have none: they are what one hopes for.
    """
    keys = [key for key in panel.keys if any(run.has(key) for run in runs)]
    if panel.is_count and not any(value for run in runs for key in keys for _, value in run.series(key)):
        return []
    sources = [key for key in keys if key.endswith(tuple(SOURCES))]
    if len(sources) == 1 and len(keys) == 2:  # all of it is of that source
        keys = keys[:1]
    found = []
    for place, run in enumerate(runs):
        for number, key in enumerate(keys):
            if run.has(key):
                label = panel.keys[key]
                if len(runs) > 1:
                    label = run.name if len(keys) == 1 else f"{run.name}: {label}"
                hue, dash = (place, number if len(keys) > 1 else place) if len(runs) > 1 else (number, number)
                found.append(_line(run, key, panel, label, (hue, hue, dash)))
    return found


def pass_lines(runs: Sequence[Run]) -> list[Line]:
    """pass@k over log2 k, of the last evaluation of every run."""
    found = []
    for place, run in enumerate(runs):
        row = run.last_evaluation
        names = [name.removeprefix("eval_pass_at_") for name in row if name.startswith("eval_pass_at_")]
        points = []
        for k in sorted(int(name) for name in names if name.isdigit()):
            estimate = run.estimate(f"pass_at_{k}")
            if estimate is not None:
                points.append(Point(math.log2(k), estimate.value, *map(_or_none, estimate[1:])))
        if len(points) > 1:
            found.append(Line(run.name if len(runs) > 1 else "pass@k", place, place, place, points))
    return found


def _line(run: Run, key: str, panel: Panel, label: str, look: tuple[int, int, int]) -> Line:
    points = [Point(x, y) for x, y in run.series(key)]
    if panel.has_bounds:
        bounds = [dict(run.series(key + end)) for end in ("_low", "_high")]
        points = [Point(int(p.x), p.y, *(b.get(int(p.x)) for b in bounds)) for p in points]
    mean = _running_mean(points) if len(points) >= SMOOTH_FROM and not panel.has_bounds else []
    return Line(label, *look, thinned(points), thinned(mean))


def window(count: int) -> int:
    """Points that a running mean is over."""
    return max(3, count // WINDOW)


def _running_mean(points: Sequence[Point]) -> list[Point]:
    """Around every point, of those of its neighbours that have a value; in linear time."""
    sums, counts = [0.0], [0]
    for p in points:
        sums.append(sums[-1] + (p.y or 0.0))
        counts.append(counts[-1] + (p.y is not None))
    half, found = window(len(points)) // 2, []
    for i, p in enumerate(points):
        start, end = max(0, i - half), min(len(points), i + half + 1)
        count = counts[end] - counts[start]
        found.append(Point(p.x, (sums[end] - sums[start]) / count if count and p.y is not None else None))
    return found


def thinned(points: Sequence[Point]) -> list[Point]:
    """At most MOST_POINTS points, each the mean of its neighbourhood; the last one stays."""
    size = -(-len(points) // MOST_POINTS)
    if size <= 1:
        return list(points)
    found = []
    for start in range(0, len(points) - 1, size):
        part = points[start : min(start + size, len(points) - 1)]
        ys = [p.y for p in part if p.y is not None]
        found.append(Point(sum(p.x for p in part) / len(part), sum(ys) / len(ys) if ys else None))
    return [*found, points[-1]]


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
