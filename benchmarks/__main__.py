"""python -m benchmarks: the head, forward and backward, against its peers on this machine.

Needs torch alone, so that it runs from the tree on a machine where nothing is installed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from .cases import CPU_CASES, GPU_CASES, TINY_CASES, Case
from .providers import MISSING
from .runner import ROOT, append_rows, run_case

COLUMNS = ("provider", "ms", "p20", "p80", "ratio_to_eager", "peak_mib", "dh_error", "dw_error")


def measure(cases: Sequence[Case], device: str, rounds: int, out: Path) -> None:
    """Run the cases, print a table for each, append the rows to `out`."""
    for name, reason in MISSING.items():
        print(f"skipped {name}: {reason}")
    for case in cases:
        rows = run_case(case, rounds, device)
        print(f"\n{case.name}: N={case.N} D={case.D} V={case.V} {case.dtype}, masked {case.masked:.0%}, flat groups {case.flat:.0%}")
        print("".join(f"{column:>16}" for column in COLUMNS))
        for row in rows:
            print("".join(f"{row[column]:>16}" for column in COLUMNS))
        append_rows(out, rows)
    print(f"\nrows appended to {out}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds; medians are reported")
    parser.add_argument("--tiny", action="store_true", help="shapes that only show that everything runs")
    parser.add_argument("--out", type=Path, help="CSV the rows are appended to (default: benchmarks/results/DEVICE.csv)")
    options = parser.parse_args(arguments)
    cases = TINY_CASES if options.tiny else GPU_CASES if options.device == "cuda" else CPU_CASES
    measure(cases, options.device, options.rounds, options.out or ROOT / "benchmarks" / "results" / f"{options.device}.csv")


if __name__ == "__main__":
    main()
