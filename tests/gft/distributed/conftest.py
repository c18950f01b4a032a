"""Two processes run every scenario, by DDP and by FSDP2, and one process after them."""

from __future__ import annotations

import pickle

import pytest
import torch

from gft.distributed import is_first, joined

from .ranks import ranks
from .scenarios import SCENARIOS, run

KINDS = ("ddp", "fsdp")


@pytest.fixture(autouse=True)
def forkable():
    if torch.cuda.is_available():
        pytest.skip("a process that has used CUDA cannot be forked")


@pytest.fixture(scope="session")
def outcomes(tmp_path_factory):
    """Folders of the runs: {(scenario, "ddp" | "fsdp" | "one process"): path}."""
    folder = tmp_path_factory.mktemp("scenarios")
    places = {(name, kind): folder / f"{i}-{kind}" for i, name in enumerate(SCENARIOS) for kind in KINDS}

    def work(rank: int) -> None:
        with joined("cpu"):
            drawn = {place: run(*place, out) for place, out in places.items()}
            if is_first():
                (folder / "drawn").write_bytes(pickle.dumps(drawn))

    for ended in ranks(work, folder):
        assert ended.code == 0, ended.output
    drawn = pickle.loads((folder / "drawn").read_bytes())
    for i, name in enumerate(SCENARIOS):
        places[name, "one process"] = folder / f"{i}-one"
        run(name, None, places[name, "one process"], drawn[name, "ddp"])
    return places
