"""python -m benchmarks.aot: compile every Triton kernel for every architecture, with no GPU.

The rows go to results/aot.csv. Those of other Triton versions stay in the table; run the tool once
under each version that is to have rows.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import triton

from .compiler import ARCHITECTURES
from .rows import DTYPES, TABLE, cases, measure, violations, write


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.aot", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--arch", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument(
        "--out", type=Path, help="CSV to write; default: results/aot.csv where everything is compiled, else none"
    )
    options = parser.parse_args(arguments)
    if triton.knobs.runtime.interpret:
        parser.error("TRITON_INTERPRET is set: nothing compiles in the interpreter.")
    chosen = cases(options.arch, options.dtype)
    rows = []
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
        for row in pool.map(measure, chosen):
            rows.append(row)
            print(
                "{arch:>6} {kernel:21} {variant:20} {dtype} {config:15} {registers:>3} registers".format(**row),
                violations(row) or "",
            )
    out = options.out or (TABLE if chosen == cases() else None)
    if out is not None:
        write(rows, out)
    return int(any(map(violations, rows)))


if __name__ == "__main__":
    sys.exit(main())
