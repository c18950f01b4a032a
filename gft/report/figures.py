"""Curves of runs as PNG files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from .lines import Line, lines_of, pass_lines
from .panels import PANELS
from .runs import Run
from .text import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LINE_STYLES, MARKERS = ("-", "--", ":", "-."), ("o", "s", "^", "D", "x", "|")


def comparison_figure(curves: dict[str, list[dict]], path: Path, samples: int) -> Path:
    """Held-out accuracy against updates, one line a method."""
    plt = _pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
    for axis, key, title in (
        (axes[0], "eval_sampled", f"mean of {samples} samples, temperature 1"),
        (axes[1], "eval_greedy", "greedy"),
    ):
        for name, rows in curves.items():
            points = [(r["step"], r[key]) for r in rows if r.get(key) is not None]
            axis.plot([step for step, _ in points], [value for _, value in points], marker=".", label=name)
        axis.set(title=title, xlabel="updates", ylim=(0, 1.02))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("held-out accuracy")
    axes[0].legend()
    return _save(figure, path)


def run_figure(rows: Sequence[dict], path: Path) -> Path:
    """The curves of one run: rewards, NLL and entropy, rectification, gradient norm."""
    plt = _pyplot()
    steps = [r for r in rows if "loss" in r]
    panels = (
        ("reward by source", ("reward_expert", "reward_teacher", "reward_self")),
        ("nats", ("nll", "entropy")),
        ("rectification", ("mean_c", "rectified_fraction", "flat_groups")),
        ("loss and gradient", ("loss", "grad_norm")),
    )
    figure, axes = plt.subplots(2, 2, figsize=(10, 7), sharex=True)
    for axis, (title, keys) in zip(axes.flat, panels, strict=True):
        for key in keys:
            points = [(r["step"], r[key]) for r in steps if r.get(key) is not None]
            if points:
                axis.plot(*zip(*points, strict=True), label=key)
        axis.set(title=title)
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend()
    for axis in axes[1]:
        axis.set_xlabel("updates")
    return _save(figure, path)


def _pyplot() -> ModuleType:
    """pyplot without a display, imported only when something is drawn."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # it may be a link, and what it leads to is not the run's
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    _pyplot().close(figure)
    return path


def panel_figures(runs: Sequence[Run], folder: Path) -> list[Path]:
    """A PNG of every panel of the report that has a line, and of pass@k, in `folder`."""
    pictures = [(panel.slug, panel.title, lines_of(panel, runs), panel.is_share) for panel in PANELS]
    pictures.append(("pass-k", "pass@k", pass_lines(runs), True))
    return [
        _panel_figure(title, lines, is_share, folder / f"{slug}.png", is_power=slug == "pass-k")
        for slug, title, lines, is_share in pictures
        if lines
    ]


def _panel_figure(title: str, lines: Sequence[Line], is_share: bool, path: Path, is_power: bool) -> Path:
    """Thin lines with a bold running mean where there are many points, bars for intervals."""
    figure, axis = _pyplot().subplots(figsize=(6, 3.6))
    for line in lines:
        style = {"color": f"C{line.hue % 10}", "linestyle": LINE_STYLES[line.dash % len(LINE_STYLES)]}
        xs = [2**p.x if is_power else p.x for p in line.points]
        ys = [math.nan if p.y is None else p.y for p in line.points]
        if line.mean:
            axis.plot(xs, ys, color=style["color"], linewidth=0.6, alpha=0.4)
            axis.plot([p.x for p in line.mean], [math.nan if p.y is None else p.y for p in line.mean], **style)
        else:
            axis.plot(xs, ys, marker=MARKERS[line.mark % len(MARKERS)], markersize=4, **style)
        bounds = [(x, p.low, p.high) for x, p in zip(xs, line.points, strict=True) if None not in (p.low, p.high)]
        axis.vlines(*zip(*bounds, strict=True), color=style["color"], linewidth=1) if bounds else None
        axis.plot([], [], marker=MARKERS[line.mark % len(MARKERS)], label=_plain(line.label), **style)
    axis.set(title=title, xlabel="k" if is_power else "updates")
    if is_power:
        axis.set_xscale("log", base=2)
    if is_share and all(0 <= y <= 1 for line in lines for p in line.points if (y := p.y) is not None):
        axis.set_ylim(-0.02, 1.02)
    axis.grid(alpha=0.3)
    if len(lines) > 1:
        axis.legend(fontsize="small")
    return _save(figure, path)


def _plain(label: str) -> str:
    """A label that matplotlib neither hides nor sets as a formula."""
    return visible(label).lstrip("_").replace("$", r"\$")
