"""python -m benchmarks.architectures: transformers' causal LMs, fused, against their own logits.

Every model type is built tiny and compared on a CPU, in three minutes for all.
"""

from __future__ import annotations

import argparse
import collections
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers.utils import logging

from gft_kernels.env import version

from ..record import RESULTS, append_rows, describe_machine
from .compare import measure
from .pool import each
from .tiny import ADAPTED, EXCEPTIONS, MODEL_TYPES

FIELDS = (
    "date", "commit", "torch", "transformers", "model_type", "class", "parameters", "status", "error", "dtype",
    "scale", "softcap", "tied", "reason", "exception",
)  # fmt: skip
LIMIT = 60.0  # seconds for a model


def sweep(names: Sequence[str], workers: int = 1, limit: float = LIMIT) -> list[dict]:
    """A row a model type, in the order of their names."""
    logging.set_verbosity(logging.CRITICAL)  # of transformers: slow paths, odd sizes
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    machine = describe_machine()
    common = {name: machine[name] for name in ("date", "commit", "torch")} | {"transformers": version("transformers")}
    rows = []
    for name, found in each(measure, names, workers, limit):
        if isinstance(found, Exception):
            found = {"status": "wrong", "reason": str(found)}
        rows.append({**common, "model_type": name, **found, "exception": EXCEPTIONS.get(name, ("", ""))[1]})
        print(f"{name:28} {found['status']:10} {found.get('error', ''):8} {found['reason']}", flush=True)
    return sorted(rows, key=lambda row: row["model_type"])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.architectures", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("model_types", nargs="*", help="such as llama gemma2 gpt2+lora; default: all")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, help="the CSV to append to; default: none for a few, else the results")
    options = parser.parse_args(arguments)
    rows = sweep(options.model_types or (*MODEL_TYPES, *ADAPTED), options.workers)
    print(dict(collections.Counter(row["status"] for row in rows)))
    out = options.out or (None if options.model_types else RESULTS / "architectures.csv")
    if out:
        append_rows(out, rows, FIELDS)
        print(f"rows appended to {out}")


if __name__ == "__main__":
    main()
