"""The progress line of a run."""

from __future__ import annotations

from contextlib import suppress

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

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
