"""Interleaved steps of every head, held to eager's loss and gradient norm."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Sequence
from functools import partial

from ..record import MACHINE, describe_machine
from ..timing.gate import GATE
from ..timing.runner import attempt
from .run import Run, peak_mib
from .task import Task, members

FIELDS = (
    *MACHINE,
    "model",
    "tokens",
    "micro_batch",
    "provider",
    "steps_per_s",
    "p20",
    "p80",
    "ratio_to_eager",
    "peak_mib",
    "loss",
    "grad_norm",
    "note",
)


def compare(task: Task, names: Sequence[str], steps: int) -> list[dict]:
    """Rows of the CSV from interleaved steps of the heads, after a warm-up that is their gate.

    A head that failed or was off has a note in place of its figures.
    """
    rows: dict[str, dict] = {name: {"provider": name} for name in dict.fromkeys(("eager", *names))}
    runs = {name: Run.of(task, name) for name in rows}
    given = members(runs["eager"].policy.model.config.vocab_size, task.groups, task.lengths())
    gate = GATE[runs["eager"].policy.compute]
    for number in range(steps + 1):
        for name, run in runs.items():
            if "note" not in rows[name]:
                attempt(rows[name], partial(run.step, given))
        for name, run in runs.items():
            if number in (0, steps) and "note" not in rows[name] and (wrong := off(run, runs["eager"], gate)):
                rows[name]["note"] = wrong
    common = describe_machine(task.device) | {
        "model": task.name(),
        "tokens": sum(len(m.response) for m in given),
        "micro_batch": task.micro_batch,
    }
    timed = {name: run for name, run in runs.items() if "note" not in rows[name]}
    for name, run in timed.items():
        rows[name] |= speeds(run.seconds[1:], runs["eager"].seconds[1:])  # a timed head was held to eager: eager ran
        rows[name] |= {key: f"{run.last[key]:.6g}" for key in ("loss", "grad_norm")}
    names = list(timed)
    del runs, timed, run
    gc.collect()
    for name in names:
        peak = attempt(rows[name], partial(peak_mib, task, name))
        rows[name]["peak_mib"] = "" if peak is None else f"{peak:.0f}"
    return [common | row for row in rows.values()]


def off(run: Run, oracle: Run, gate: float) -> str | None:
    """What is wrong with the last step, next to that of the eager head; None if nothing is."""
    if not oracle.last:
        return "eager failed: there is nothing to hold this head to"
    for name in ("loss", "grad_norm"):
        found, expected = run.last[name], oracle.last[name]
        if not abs(found - expected) <= gate * abs(expected):
            return (
                f"step {len(run.seconds)}: {name} {found:.6g}, of eager {expected:.6g}; "
                f"they differ by more than {gate:.0e}: left out"
            )
    return None


def speeds(seconds: Sequence[float], eager_seconds: Sequence[float]) -> dict[str, str]:
    """Median speed, its spread, and its ratio to eager.

    The ratio is the median over rounds, since a slow minute falls on both sides of a round.
    """
    found = sorted(1 / s for s in seconds)
    fifth = len(found) // 5
    ratio = statistics.median(theirs / ours for theirs, ours in zip(eager_seconds, seconds, strict=True))
    spread = {"steps_per_s": statistics.median(found), "p20": found[fifth], "p80": found[-1 - fifth]}
    return {key: f"{value:.4g}" for key, value in spread.items()} | {"ratio_to_eager": f"{ratio:.2f}"}
