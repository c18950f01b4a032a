"""What a person sees: the progress line, the final tables, the figures."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = (
    ("reward_self", "own reward"),
    ("nll", "nll"),
    ("mean_c", "C"),
    ("flat_groups", "flat"),
    ("grad_norm", "|g|"),
    ("tokens_per_second", "tok/s"),
)


def plain_console() -> Console:
    """A console without markup: brackets in a path would be read as such."""
    return Console(markup=False, emoji=False)


class Progress:
    """A bar with the numbers that matter.

    Where the output is no terminal, it prints a plain line every tenth of the run.
    """

    def __init__(self, title: str, steps: int, console: Console | None = None) -> None:
        self.console = console or plain_console()
        self.title, self.steps, self.done = title, steps, 0
        columns = (
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[numbers]}"),
        )
        self.bar = RichProgress(
            TextColumn("[bold]{task.description}"), *columns, console=self.console, disable=not self.console.is_terminal
        )

    def __enter__(self) -> Progress:
        self.bar.start()
        self.task = self.bar.add_task(self.title, total=self.steps, numbers="")
        return self

    def __exit__(self, *exception: object) -> None:
        with suppress(OSError):
            self.bar.stop()

    def step(self, row: dict) -> None:
        self.done += 1  # may be set, where a run goes on
        numbers = "  ".join(f"{label} {row[key]:.3g}" for key, label in SHOWN if row.get(key) is not None)
        with suppress(OSError):
            self.bar.update(self.task, completed=self.done, numbers=numbers)
        if not self.console.is_terminal and (self.done % max(self.steps // 10, 1) == 0 or self.done == self.steps):
            self.say(f"{self.title} {self.done}/{self.steps}  {numbers}")

    def say(self, text: str) -> None:
        with suppress(OSError):  # a terminal that is closed ends no run
            self.console.print(text, highlight=False, soft_wrap=True)


def accuracy_table(rows: Sequence[tuple[str, dict]], title: str, samples: int) -> Table:
    """One line a run: greedy accuracy, the mean of `samples` samples at temperature 1, and what is
    known of the run: its updates, the sequences it reads per update with its own samples among
    them, its seconds.
    """
    known = [key for key in ("updates", "sequences", "seconds") if any(key in r for _, r in rows)]
    titles = {"sequences": "sequences per update"}
    table = Table("", "greedy", f"mean@{samples}", *(titles.get(key, key) for key in known), title=title)
    for name, r in rows:
        own = f" ({r['own']} own)" if r.get("own") else ""
        shown = {key: f"{r[key]:.0f}" for key in known if key in r}
        shown |= {"sequences": shown["sequences"] + own} if "sequences" in shown else {}
        table.add_row(name, _share(r["greedy"]), _share(r["sampled"]), *(shown.get(key, "") for key in known))
    return table


def _share(value: float | None) -> str:
    """A percentage; "-" where nothing could be scored."""
    return "-" if value is None or value != value else f"{value:.1%}"


def run_table(rows: Sequence[dict], title: str) -> Table:
    """First and last tenth of a run's metrics side by side."""
    steps = [r for r in rows if "loss" in r]
    part = max(len(steps) // 10, 1)
    table = Table("metric", f"first {part} steps", f"last {part} steps", title=title)
    for key in dict.fromkeys(k for r in steps for k in r):
        columns = [
            [r[key] for r in some if isinstance(r.get(key), (int, float))] for some in (steps[:part], steps[-part:])
        ]
        if key not in ("step", "skipped") and all(columns):
            table.add_row(key, *(f"{sum(c) / len(c):.4g}" for c in columns))
    for r in (r for r in rows if "eval_greedy" in r):
        table.add_row(
            f"held-out at step {r['step']}",
            f"greedy {_share(r['eval_greedy'])}",
            f"sampled {_share(r['eval_sampled'])}",
        )
    return table


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
