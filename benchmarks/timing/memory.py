"""Peak extra memory of the parts of one step.

On a GPU the allocator's, on a CPU the resident memory of a fresh process.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import resource
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from ..heads.ours import COMPILED, find
from ..inputs.cases import Batch, Case, make_batch

MIB = 2**20


def peak_mib(case: Case, name: str, batch: Batch) -> dict[str, float]:
    """MiB above what the inputs take, in the forward, the backward and the whole step.

    On a CPU the step runs in a process of its own, forked from one that has imported everything; in
    a dry run it runs in this one.
    """
    if batch.hidden.is_cuda:
        torch.cuda.empty_cache()
        return peaks(
            name,
            batch,
            torch.cuda.memory_allocated,
            torch.cuda.max_memory_allocated,
            torch.cuda.reset_peak_memory_stats,
        )
    if os.environ.get("GFT_KERNELS_DRY_RUN") == "1":
        return peaks(name, batch, rss, peak_rss, reset_peak)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.timing.memory"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_peaks_here, case, name).result()


def peaks(
    name: str, batch: Batch, now: Callable[[], int], highest: Callable[[], int], reset: Callable[[], None]
) -> dict[str, float]:
    leaves = batch.leaves()
    before = now()
    reset()
    loss = find(name)(leaves)
    forward = highest()
    reset()
    loss.backward()
    backward = highest()
    return {
        mode: (peak - before) / MIB
        for mode, peak in (("forward", forward), ("backward", backward), ("full", max(forward, backward)))
    }


def _peaks_here(case: Case, name: str) -> dict[str, float]:
    batch = make_batch(case)
    warm_up = batch if name in COMPILED else make_batch(Case("warm-up", 64, 64, 512, dtype=case.dtype))
    find(name)(warm_up.leaves()).backward()
    _release_free_memory()
    return peaks(name, batch, rss, peak_rss, reset_peak)


def _release_free_memory() -> None:
    """Hand freed heap back, so that a step cannot live on what a warm-up left."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _status(key: str) -> int | None:
    """Bytes of a line of /proc/self/status; None where there is no such file."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    line = next(line for line in status.read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def rss() -> int:
    """Resident bytes now."""
    return _status("VmRSS") or peak_rss()


def peak_rss() -> int:
    """Highest resident bytes since the last reset.

    From /proc where there is one, since ru_maxrss of a child starts at its parent's.
    """
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def reset_peak() -> None:
    """Start the highest resident bytes anew (Linux; elsewhere the peak is that of the process)."""
    references = Path("/proc/self/clear_refs")
    if references.exists():
        references.write_text("5")
