"""Interleaved timing behind a correctness gate, and peak memory in a process of its own.

A provider whose gradients leave those of the fp64 reference by more than GATE is not timed. Rounds visit the providers in
turn, so that a slow minute of the machine falls on all of them; ratios are medians over rounds of the same run.
"""

from __future__ import annotations

import csv
import datetime
import platform
import resource
import statistics
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import torch

from gft_kernels import gft, reference
from gft_kernels.head import Head
from gft_kernels.plan import LossPlan

from .cases import TAU, Batch, Case, make_batch, thinned
from .providers import PROVIDERS, Provider

ROOT = Path(__file__).parents[1]
GATE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
GATE_ROWS = 512
FIELDS = (
    "date", "commit", "device", "python", "torch", "triton", "threads", "case", "N", "D", "V", "masked", "flat", "dtype",
    "provider", "ms", "p20", "p80", "ratio_to_eager", "peak_mib", "dh_error", "dw_error",
)  # fmt: skip


def gradients(provider: Provider, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    hidden, weight = batch.hidden.detach().requires_grad_(), batch.weight.detach().requires_grad_()
    provider(Batch(hidden, weight, batch.targets, batch.advantages, batch.token_weights)).backward()
    return hidden.grad, weight.grad


def oracle(batch: Batch) -> torch.Tensor:
    """The provider that the others are held to: the eager reference in fp64."""
    per_token = {"advantages": batch.advantages.double(), "old_logprobs": None, "ref_logprobs": None}
    plan = LossPlan(batch.targets, None, batch.token_weights.double(), per_token, gft(TAU), Head())
    return reference.policy_loss(batch.hidden.double(), batch.weight.double(), plan).loss


def errors(found, expected) -> list[float]:
    return [((a.double() - b.double()).norm() / b.double().norm()).item() for a, b in zip(found, expected, strict=True)]


def peak_mib(case: Case, provider: str, device: str) -> float:
    """Extra memory of one forward and backward: of the GPU's allocator, or resident in a fresh process."""
    if device == "cuda":
        batch = make_batch(case, device)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        gradients(PROVIDERS[provider], batch)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    described = f"Case({case.name!r}, {case.N}, {case.D}, {case.V}, {case.masked}, {case.flat}, {case.dtype})"
    code = (
        f"import torch; from benchmarks.cases import Case; from benchmarks.runner import _peak_here; _peak_here({described}, {provider!r})"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return float(out.stdout)


def _peak_here(case: Case, provider: str) -> None:
    batch = make_batch(case)
    gradients(PROVIDERS[provider], make_batch(Case("warm-up", 64, 64, 512, dtype=case.dtype)))
    before = peak_rss()
    gradients(PROVIDERS[provider], batch)
    print((peak_rss() - before) / 2**20)


def peak_rss() -> int:
    """Bytes; from /proc where there is one, since ru_maxrss of a child starts at its parent's."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def passing(case: Case, batch: Batch) -> dict[str, dict]:
    """The gate: providers whose gradients are near fp64's, with their errors; the others are named and left out."""
    rows = {}
    gate = thinned(batch, GATE_ROWS)
    expected = gradients(oracle, gate)
    for name, provider in PROVIDERS.items():
        dh, dw = errors(gradients(provider, gate), expected)
        if max(dh, dw) <= GATE[case.dtype]:
            rows[name] = {"provider": name, "dh_error": f"{dh:.1e}", "dw_error": f"{dw:.1e}"}
        else:
            print(f"{case.name}: {name} excluded, gradient error dh {dh:.1e} dw {dw:.1e} over {GATE[case.dtype]:.0e}")
    return rows


def milliseconds(provider: Provider, batch: Batch) -> float:
    wait = torch.cuda.synchronize if batch.hidden.is_cuda else lambda: None
    wait()
    start = time.perf_counter()
    gradients(provider, batch)
    wait()
    return (time.perf_counter() - start) * 1e3


def run_case(case: Case, rounds: int, device: str = "cpu") -> list[dict]:
    """Gate, time and weigh every provider on one case; rows of the CSV."""
    batch = make_batch(case, device)
    rows = passing(case, batch)
    times: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(rounds):
        for name in rows:
            times[name].append(milliseconds(PROVIDERS[name], batch))
    middle = {name: statistics.median(t) for name, t in times.items()}
    for name, row in rows.items():
        ordered = sorted(times[name])
        row |= {
            "ms": f"{middle[name]:.1f}", "p20": f"{ordered[rounds // 5]:.1f}", "p80": f"{ordered[-1 - rounds // 5]:.1f}",
            "ratio_to_eager": f"{middle['eager'] / middle[name]:.2f}" if "eager" in middle else "",
            "peak_mib": f"{peak_mib(case, name, device):.0f}",
        }  # fmt: skip
    common = describe(case, device)
    return [common | row for row in rows.values()]


def git_commit() -> str:
    """Short commit, with '+' where the tree differs from it; 'unknown' outside a checkout."""
    call = lambda *args: subprocess.run(["git", *args], capture_output=True, text=True, cwd=ROOT)  # noqa: E731
    head = call("rev-parse", "--short", "HEAD")
    if head.returncode:
        return "unknown"
    return head.stdout.strip() + ("+" if call("status", "--porcelain", "--", "*.py").stdout.strip() else "")


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def describe(case: Case, device: str) -> dict:
    """The columns that say what was measured where."""
    return {
        "date": datetime.date.today().isoformat(), "commit": git_commit(),
        "device": torch.cuda.get_device_name() if device == "cuda" else f"cpu {platform.machine()}",
        "python": platform.python_version(), "torch": torch.__version__, "triton": version("triton"),
        "threads": torch.get_num_threads(), "case": case.name, "N": case.N, "D": case.D, "V": case.V,
        "masked": case.masked, "flat": case.flat, "dtype": str(case.dtype).removeprefix("torch."),
    }  # fmt: skip


def append_rows(path: Path, rows: list[dict]) -> None:
    """Add rows to an append-only CSV, with a header where the file is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as f:
        writer = csv.DictWriter(f, FIELDS)
        if new:
            writer.writeheader()
        writer.writerows(rows)
