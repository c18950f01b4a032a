"""Interleaved timing behind a correctness gate, and peak memory in a process of its own.

A provider whose gradients leave those of the fp64 reference by more than GATE is not timed. Rounds visit the providers in
turn, so that a slow minute of the machine falls on all of them; ratios are medians over rounds of the same run. A provider that
fails leaves a row with the reason.
"""

from __future__ import annotations

import csv
import datetime
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from gft_kernels import gft, reference
from gft_kernels.env import driver, version
from gft_kernels.head import Head
from gft_kernels.plan import LossPlan

from .breakdown import kernel_times
from .cases import TAU, Batch, Case, make_batch, thinned
from .providers import FLOORS, PROVIDERS, Provider

ROOT = Path(__file__).parents[1]
GATE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
GATE_ROWS = 512
FIELDS = (
    "date", "commit", "device", "python", "torch", "triton", "threads", "case", "N", "D", "V", "masked", "flat", "dtype",
    "provider", "ms", "p20", "p80", "ratio_to_eager", "peak_mib", "dh_error", "dw_error", "driver", "over_bare_gemms", "kernels", "note",
)  # fmt: skip
UNGATED = "three GEMMs over all rows: no loss, no gate"

Gradients = tuple[torch.Tensor, torch.Tensor]


def gradients(provider: Provider, batch: Batch) -> Gradients:
    hidden, weight = batch.hidden.detach().requires_grad_(), batch.weight.detach().requires_grad_()
    provider(Batch(hidden, weight, batch.targets, batch.advantages, batch.token_weights)).backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    return hidden.grad, weight.grad


def step(name: str, batch: Batch) -> Gradients:
    """One forward and backward of a provider or a floor."""
    return FLOORS[name](batch) if name in FLOORS else gradients(PROVIDERS[name], batch)


def oracle(batch: Batch) -> torch.Tensor:
    """The provider that the others are held to: the eager reference in fp64."""
    per_token = {"advantages": batch.advantages.double(), "old_logprobs": None, "ref_logprobs": None}
    plan = LossPlan(batch.targets, None, batch.token_weights.double(), per_token, gft(TAU), Head())
    return reference.policy_loss(batch.hidden.double(), batch.weight.double(), plan).loss


def errors(found: Gradients, expected: Gradients) -> list[float]:
    return [((a.double() - b.double()).norm() / b.double().norm()).item() for a, b in zip(found, expected, strict=True)]


def peak_mib(case: Case, provider: str, batch: Batch) -> float:
    """Extra memory of one forward and backward: of the GPU's allocator, or resident in a fresh process (here, in a dry run)."""
    if batch.hidden.is_cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(provider, batch)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    if os.environ.get("GFT_KERNELS_DRY_RUN") == "1":
        before = peak_rss()
        step(provider, batch)
        return (peak_rss() - before) / 2**20
    described = f"Case({case.name!r}, {case.N}, {case.D}, {case.V}, {case.masked}, {case.flat}, {case.dtype})"
    code = (
        f"import torch; from benchmarks.cases import Case; from benchmarks.runner import _peak_here; _peak_here({described}, {provider!r})"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return float(out.stdout)


def _peak_here(case: Case, provider: str) -> None:
    batch = make_batch(case)
    step(provider, make_batch(Case("warm-up", 64, 64, 512, dtype=case.dtype)))
    before = peak_rss()
    step(provider, batch)
    print((peak_rss() - before) / 2**20)


def peak_rss() -> int:
    """Bytes; from /proc where there is one, since ru_maxrss of a child starts at its parent's."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


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
    """A row for each name. Those that failed, or whose gradients are not near fp64's, carry a note and are not to be timed."""
    rows: dict[str, dict] = {name: {"provider": name} for name in names}
    gate = thinned(batch, GATE_ROWS)
    expected = gradients(oracle, gate)
    for name, row in rows.items():
        if name in FLOORS:
            continue
        found = attempt(row, lambda name=name: errors(gradients(PROVIDERS[name], gate), expected))
        if found is None:
            continue
        dh, dw = found
        row |= {"dh_error": f"{dh:.1e}", "dw_error": f"{dw:.1e}"}
        if not max(dh, dw) <= GATE[case.dtype]:
            row["note"] = f"gradient error dh {dh:.1e} dw {dw:.1e} over {GATE[case.dtype]:.0e}: not timed"
    return rows


def milliseconds(name: str, batch: Batch) -> float:
    wait = torch.cuda.synchronize if batch.hidden.is_cuda else lambda: None
    wait()
    start = time.perf_counter()
    step(name, batch)
    wait()
    return (time.perf_counter() - start) * 1e3


def time_rows(rows: dict[str, dict], batch: Batch, rounds: int) -> None:
    """Interleaved rounds after a warm-up; fills ms, its spread and the ratios of every row without a note."""
    times: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(rounds + 1):
        for name, row in rows.items():
            if "note" not in row:
                attempt(row, lambda name=name: times[name].append(milliseconds(name, batch)))
    middle = {name: statistics.median(t[1:]) for name, t in times.items() if "note" not in rows[name]}
    for name, ms in middle.items():
        ordered = sorted(times[name][1:])
        rows[name] |= {"ms": f"{ms:.1f}", "p20": f"{ordered[rounds // 5]:.1f}", "p80": f"{ordered[-1 - rounds // 5]:.1f}"}
        if "eager" in middle:
            rows[name]["ratio_to_eager"] = f"{middle['eager'] / ms:.2f}"
        if "bare-gemms" in middle:
            rows[name]["over_bare_gemms"] = f"{ms / middle['bare-gemms']:.2f}"


def run_case(case: Case, rounds: int, device: str = "cpu", names: Sequence[str] = (*FLOORS, *PROVIDERS)) -> list[dict]:
    """Gate, time and weigh providers on one case; rows of the CSV."""
    batch = make_batch(case, device)
    rows = gated(case, batch, names)
    time_rows(rows, batch, rounds)
    for name, row in rows.items():
        if "note" in row:
            print(f"{case.name}: {name} left out, {row['note']}")
            continue
        peak = attempt(row, lambda name=name: f"{peak_mib(case, name, batch):.0f}")
        row["peak_mib"] = "" if peak is None else peak
        if name == "gft-triton":
            parts = attempt(row, lambda name=name: kernel_times(lambda: step(name, batch), batch.hidden.is_cuda, min(rounds, 5)))
            row["kernels"] = " ".join(f"{part}={ms:.3f}" for part, ms in parts.items()) if isinstance(parts, dict) else ""
        if name in FLOORS:
            row.setdefault("note", UNGATED)
    common = describe(case, device)
    return [common | row for row in rows.values()]


def git_commit() -> str:
    """GFT_COMMIT, or the short commit with '+' where the tree differs from it; 'unknown' outside a checkout or without git."""
    if commit := os.environ.get("GFT_COMMIT"):
        return commit
    call = lambda *args: subprocess.run(["git", *args], capture_output=True, text=True, cwd=ROOT)  # noqa: E731
    try:
        head = call("rev-parse", "--short", "HEAD")
    except OSError:
        return "unknown"
    if head.returncode:
        return "unknown"
    return head.stdout.strip() + ("+" if call("status", "--porcelain", "--", "*.py").stdout.strip() else "")


def describe(case: Case, device: str) -> dict:
    """The columns that say what was measured where."""
    return {
        "date": datetime.date.today().isoformat(), "commit": git_commit(),
        "device": torch.cuda.get_device_name() if device == "cuda" else f"cpu {platform.machine()}", "driver": driver(),
        "python": platform.python_version(), "torch": torch.__version__, "triton": version("triton"),
        "threads": torch.get_num_threads(), "case": case.name, "N": case.N, "D": case.D, "V": case.V,
        "masked": case.masked, "flat": case.flat, "dtype": str(case.dtype).removeprefix("torch."),
    }  # fmt: skip


def append_rows(path: Path, rows: list[dict]) -> None:
    """Add rows to an append-only CSV, with a header where the file is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as f:
        writer = csv.DictWriter(f, FIELDS, restval="")
        if new:
            writer.writeheader()
        writer.writerows(rows)
