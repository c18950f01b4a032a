"""Curves of runs as PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
