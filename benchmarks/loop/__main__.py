"""python -m benchmarks.loop: optimiser steps a second of gft's own training step, head by head.

The responses are given, so nothing is sampled. gft leaves prompts and the groups without spread out
for every head alike: the heads see the same rows, and what skipping rows saves a trainer that
scores them is not in these figures.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..record import RESULTS, append_rows
from .compare import FIELDS, compare
from .heads import HEADS, available
from .run import peak_here
from .task import LENGTHS, Task

COLUMNS = ("provider", "steps_per_s", "p20", "p80", "ratio_to_eager", "peak_mib", "loss", "grad_norm")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loop", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, help="local transformers folder (default: a small random Llama)")
    parser.add_argument("--steps", type=int, default=6, help="optimiser steps of a head, after one of warm-up")
    parser.add_argument("--groups", type=int, default=4, help=f"groups of {len(LENGTHS)} responses a step")
    parser.add_argument("--micro-batch", type=int, default=8, help="sequences a forward and backward pass")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--tiny", action="store_true", help="sizes that only show that everything runs")
    parser.add_argument("--heads", nargs="*", help=f"of {', '.join(HEADS)}, beside eager (default: all)")
    parser.add_argument("--out", type=Path, default=RESULTS / "loop.csv")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    task = Task(options.model, options.device, options.tiny, options.groups, options.micro_batch)
    if options.peak_of:
        print(peak_here(task, options.peak_of))
        return
    rows = compare(
        task, [name for name in available() if options.heads is None or name in options.heads], options.steps
    )
    append_rows(options.out, rows, FIELDS)
    print(
        f"\n{rows[0]['model']}, {rows[0]['tokens']} response tokens a step, "
        f"micro-batches of {task.micro_batch}, {options.steps} steps"
    )
    print("".join(f"{column:>16}" for column in COLUMNS))
    for row in rows:
        print("".join(f"{row.get(column, ''):>16}" for column in COLUMNS), row.get("note", ""))
    print(f"rows appended to {options.out}")


if __name__ == "__main__":
    main()
