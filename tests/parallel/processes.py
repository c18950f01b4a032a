"""Three processes over gloo that run the same functions, and what each of them found."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

RANKS = 3
Found = dict[Any, Any]  # by case; an error as its text


def run(module: Callable[[], Mapping[Any, Callable[[], object]]], folder: Path) -> list[Found]:
    """What each rank found in the cases that `module()` names, by rank.

    The processes are forks, which have imported everything, also a copy of the package with a fault
    in it. A process that has begun to use a GPU cannot be forked.
    """
    context = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "fork")
    processes = [context.Process(target=_work, args=(module, folder, rank)) for rank in range(RANKS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(200)
        process.kill()
    assert not any(process.exitcode for process in processes), [process.exitcode for process in processes]
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


def _work(module: Callable[[], Mapping[Any, Callable[[], object]]], folder: Path, rank: int) -> None:
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported: the tensors are on the CPU
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), RANKS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS, timeout=timedelta(seconds=20))
    found: Found = {}
    for name, case in module().items():
        torch.manual_seed(0)
        try:
            found[name] = case()
        except Exception as error:  # the other ranks are in the same case
            found[name] = f"{type(error).__name__}: {error}"
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()
