"""Interleaved timing behind the gate.

A round takes one step of each provider in turn, so that a slow minute of the machine falls on all
of them. Ratios are of medians of one run. A provider that fails leaves a row with the reason.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch

from ..heads.ours import FLOORS, Provider, find, package
from ..inputs.cases import Batch, Case, make_batch
from ..record import MACHINE, describe_machine
from .breakdown import kernel_times
from .gate import GATE_ROWS, Found, oracle, step, verdict
from .memory import peak_mib

MODES = ("forward", "backward", "full")  # with gradients formed in the forward, ours has little left for the backward
FIELDS = (
    *MACHINE,
    "case",
    "N",
    "D",
    "V",
    "masked",
    "flat",
    "dtype",
    "inputs",
    "provider",
    "package",
    "mode",
    "ms",
    "p20",
    "p80",
    "rounds",
    "ratio_to_eager",
    "over_bare_gemms",
    "peak_mib",
    "loss_error",
    "dh_error",
    "dw_error",
    "kernels",
    "note",
)
SECONDS = 45.0  # of timing a case
UNGATED = "three GEMMs over all rows: no loss, no gate"


def attempt(row: dict, call: Callable[[], object]) -> object:
    """What `call` returns; its failure becomes the row's note."""
    try:
        return call()
    except Exception as error:
        row["note"] = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def gated(case: Case, batch: Batch, names: Sequence[str]) -> dict[str, dict]:
    """A row for each name.

    Those that failed, or whose gradients are not near fp64's, carry a note and are not to be timed.
    """
    rows: dict[str, dict] = {name: {"provider": name} for name in names}
    thinned = batch.thinned(GATE_ROWS)
    expected = oracle(thinned)
    for name, row in rows.items():
        if name in FLOORS:
            continue
        errors = attempt(row, partial(_errors, name, thinned, expected))
        if isinstance(errors, dict):
            row |= {key: f"{error:.1e}" for key, error in errors.items()}
            if reason := verdict(name, errors, case.dtype):
                row["note"] = reason
    return rows


def _errors(name: str, batch: Batch, expected: Found) -> dict[str, float]:
    return step(find(name), batch).errors(expected)


def timed_step(provider: Provider, batch: Batch) -> tuple[float, float, float]:
    """Milliseconds of forward, backward and both.

    By events on a GPU, by the host's clock on a CPU.
    """
    leaves, cuda = batch.leaves(), batch.hidden.is_cuda
    stamps: list = []

    def stamp() -> None:
        if cuda:
            stamps.append(torch.cuda.Event(enable_timing=True))
            stamps[-1].record()
        else:
            stamps.append(time.perf_counter() * 1e3)

    stamp()
    loss = provider(leaves)
    stamp()
    loss.backward()
    stamp()
    if cuda:
        torch.cuda.synchronize()
        return stamps[0].elapsed_time(stamps[1]), stamps[1].elapsed_time(stamps[2]), stamps[0].elapsed_time(stamps[2])
    return stamps[1] - stamps[0], stamps[2] - stamps[1], stamps[2] - stamps[0]


def _timed(name: str, batch: Batch) -> tuple[float, float, float]:
    return timed_step(find(name), batch)


def time_rows(rows: dict[str, dict], batch: Batch, rounds: int) -> dict[str, list[tuple[float, float, float]]]:
    """Times of interleaved rounds after a warm-up, of every row without a note.

    A failure becomes a note. After SECONDS no further round is begun, though two are always timed.
    """
    times: dict[str, list] = {name: [] for name in rows}
    start = time.monotonic()
    for number in range(rounds + 1):
        if number > 2 and time.monotonic() - start > SECONDS:
            break
        for name, row in rows.items():
            if "note" in row:
                continue
            found = attempt(row, partial(_timed, name, batch))
            if isinstance(found, tuple):
                times[name].append(found)
    return {name: every[1:] for name, every in times.items() if "note" not in rows[name]}


def statistics_of(times: dict[str, list[tuple[float, float, float]]], name: str, mode: str) -> dict[str, str]:
    """Median and spread of a provider in a mode, and its ratios to eager and the bare GEMMs."""
    at = MODES.index(mode)
    middle = {other: statistics.median(t[at] for t in found) for other, found in times.items()}
    ordered, rounds = sorted(t[at] for t in times[name]), len(times[name])
    found = {
        "ms": f"{middle[name]:.2f}",
        "p20": f"{ordered[rounds // 5]:.2f}",
        "p80": f"{ordered[-1 - rounds // 5]:.2f}",
    }
    if "eager" in middle:
        found["ratio_to_eager"] = f"{middle['eager'] / middle[name]:.2f}"
    if "bare-gemms" in middle:
        found["over_bare_gemms"] = f"{middle[name] / middle['bare-gemms']:.2f}"
    return found | {"rounds": str(rounds)}


def run_case(case: Case, rounds: int, device: str, names: Sequence[str]) -> list[dict]:
    """Gate, time and weigh providers on one case.

    A row of the CSV for each provider and mode; one for a provider that was left out.
    """
    torch._dynamo.reset()
    batch = make_batch(case, device)
    rows = gated(case, batch, names)
    times = time_rows(rows, batch, rounds)
    common = describe_machine(device) | describe_case(case)
    found = []
    for name, row in rows.items():
        row |= common | {"package": package(name), "note": row.get("note", UNGATED if name in FLOORS else "")}
        if name not in times:
            found.append(row)
            continue
        peaks = attempt(row, partial(peak_mib, case, name, batch)) or {}
        for mode in MODES:
            peak = {"peak_mib": f"{peaks[mode]:.0f}"} if isinstance(peaks, dict) and mode in peaks else {}
            found.append(row | {"mode": mode} | statistics_of(times, name, mode) | peak)
        if name == "gft-triton":
            one = partial(step, find(name), batch)
            parts = attempt(found[-1], partial(kernel_times, one, batch.hidden.is_cuda, min(rounds, 5)))
            found[-1]["kernels"] = (
                " ".join(f"{part}={ms:.3f}" for part, ms in parts.items()) if isinstance(parts, dict) else ""
            )
    return found


def describe_case(case: Case) -> dict:
    """The columns that say what was measured."""
    return {
        "case": case.name,
        "N": case.N,
        "D": case.D,
        "V": case.V,
        "masked": case.masked,
        "flat": case.flat,
        "dtype": str(case.dtype).removeprefix("torch."),
        "inputs": case.inputs,
    }
