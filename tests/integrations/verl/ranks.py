"""One of two processes of a sharded actor: its update against that of one process, as JSON.

python -m tests.integrations.verl.ranks MODEL FOLDER RANK
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from ..models import V
from .tiny import engine_of, parameters, process_group, rollout, update

RANKS = 2


def main(model: str, folder: str, rank: int) -> None:
    with process_group(rank, RANKS, dist.FileStore(f"{folder}/store", RANKS)):
        engine = engine_of(model, True)
        half = slice(4 * rank, 4 * rank + 4)
        found = update(engine, rollout(V, 0.8, True, half), "gft")
        want = torch.load(f"{folder}/one.pt")
        error = max((p - want[name]).abs().max().item() for name, p in parameters(engine).items())
        found = {"error": error, "loss": found["loss"], "grad_norm": found["grad_norm"]}
        Path(folder, f"rank{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
