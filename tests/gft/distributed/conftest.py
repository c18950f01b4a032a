"""Two processes run the scenarios, by DDP or by FSDP2, and one process after them."""

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
    """(scenario, kind) -> the folders of two processes' run and of one's, on the same samples."""

    @cache
    def made(name: str, kind: str) -> tuple[Path, Path]:
        folder = tmp_path_factory.mktemp("scenario")

        def work(rank: int) -> None:
            with joined("cpu"):
                drawn = run(name, kind, folder / "two")
                if is_first():
                    (folder / "drawn").write_bytes(pickle.dumps(drawn))

        for ended in ranks(work, folder):
            assert ended.code == 0, ended.output
        run(name, None, folder / "one", pickle.loads((folder / "drawn").read_bytes()))
        return folder / "two", folder / "one"

    return made
