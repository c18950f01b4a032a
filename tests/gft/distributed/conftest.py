"""Two processes run the scenarios, by DDP and by FSDP2, and one process after them."""

from __future__ import annotations

import pickle
from functools import cache
from pathlib import Path

import pytest
import torch

from gft.distributed import is_first, joined

from .ranks import ranks
from .scenarios import SCENARIOS, run

FAST_SHARDED = ("unequal groups in micro-batches", "a rank without a group", "several updates of a batch")
# (scenario, kind): whether it is slow
PLACES = {(name, "ddp"): False for name in SCENARIOS} | {(name, "fsdp"): name not in FAST_SHARDED for name in SCENARIOS}


@pytest.fixture(autouse=True)
def forkable():
    if torch.cuda.is_available():
        pytest.skip("a process that has used CUDA cannot be forked")


@pytest.fixture(scope="session")
def outcomes(tmp_path_factory):
    """(scenario, kind) -> the folders of two processes' run and of one's."""

    @cache
    def run_all(slow: bool) -> dict[tuple[str, str], tuple[Path, Path]]:
        return _run_all([place for place in PLACES if PLACES[place] == slow], tmp_path_factory.mktemp("scenarios"))

    return lambda *place: run_all(PLACES[place])[place]


def _run_all(places: list[tuple[str, str]], folder: Path) -> dict[tuple[str, str], tuple[Path, Path]]:
    outs = {place: folder / f"several-{i}" for i, place in enumerate(places)}

    def work(rank: int) -> None:
        with joined("cpu"):
            drawn = {place: run(*place, out) for place, out in outs.items()}
            if is_first():
                (folder / "drawn").write_bytes(pickle.dumps(drawn))

    for ended in ranks(work, folder):
        assert ended.code == 0, ended.output
    drawn = pickle.loads((folder / "drawn").read_bytes())
    alone: dict[str, Path] = {}
    for name, kind in places:
        if name not in alone:  # DDP and FSDP2 draw the same
            alone[name] = folder / f"one-{name}"
            run(name, None, alone[name], drawn[name, kind])
    return {(name, kind): (out, alone[name]) for (name, kind), out in outs.items()}
