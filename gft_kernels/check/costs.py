"""Memory and time of the GFT loss against eager logits, reported and not judged."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from .cases import results
from .problem import make_problem


def peak_mib(run: Callable[[], object]) -> float:
    """Extra memory of `run` at its peak, of the device's allocator."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def milliseconds(run: Callable[[], object], device: str) -> float:
    """Wall time of `run`, to the end of what it launched."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) * 1e3


def fitting(rows: int, size: int, vocabulary: int, row_bytes: int, device: str) -> tuple[int, int, int]:
    """The sizes, halved until 80% of the device's free memory holds row_bytes * N * V + 12 * V * D.

    Rows are halved first, then the vocabulary.
    """
    free = 0.8 * torch.cuda.mem_get_info()[0] if device == "cuda" else float("inf")
    while row_bytes * rows * vocabulary + 12 * vocabulary * size > free and vocabulary > 1024:
        rows, vocabulary = (rows // 2, vocabulary) if rows > 1024 else (rows, vocabulary // 2)
    return rows, size, vocabulary


def costs(device: str, dtype: torch.dtype) -> None:
    """Print memory and time of the GFT loss, forward and backward, against eager logits.

    Runs are interleaved, and times are medians of five.
    """
    sizes = fitting(8192, 2048, 131072, 24, device) if device == "cuda" else (512, 128, 16384)
    problem = make_problem(min(sizes[0], 512), *sizes[1:], dtype, device)
    repeats = sizes[0] // len(problem.targets)
    for name in ("hidden", "targets", "token_weights", "sequence_ids", "old", "ref"):
        x = getattr(problem, name)
        setattr(problem, name, x.repeat(repeats, *[1] * (x.ndim - 1)))
    runs = {name: partial(results, "gft, group rewards", problem, name) for name in ("eager", "auto")}
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(5):
        for name, run in runs.items():
            times[name].append(milliseconds(run, device))
    eager, own = (statistics.median(times[name]) for name in ("eager", "auto"))
    shape = "x".join(map(str, sizes)) + f" {dtype}"
    if device == "cuda":
        peaks = {name: peak_mib(run) for name, run in runs.items()}
        print(f"      peak extra memory, {shape:<35}  {peaks['auto']:.0f} MiB, eager logits {peaks['eager']:.0f} MiB")
    print(f"      forward and backward, {shape:<32}  {own:.1f} ms, eager logits {eager:.1f} ms ({eager / own:.2f}x)")
