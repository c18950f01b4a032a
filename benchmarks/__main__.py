"""python -m benchmarks: the head, forward and backward, against its peers on this machine.

Needs torch alone, so that it runs from the tree on a machine where nothing is installed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from .cases import CPU_CASES, GPU_CASES, INTERPRETER_CASES, TINY_CASES, Case
from .providers import FLOORS, MISSING, PROVIDERS
from .runner import ROOT, append_rows, run_case

COLUMNS = ("provider", "ms", "p20", "p80", "ratio_to_eager", "over_bare_gemms", "peak_mib", "dh_error", "dw_error")
SETS = {"cpu": CPU_CASES, "cuda": GPU_CASES, "tiny": TINY_CASES, "interpreter": INTERPRETER_CASES}


def measure(cases: Sequence[Case], device: str, rounds: int, out: Path, providers: Sequence[str] = ()) -> None:
    """Run the cases, print a table for each, append its rows to `out`."""
    for name, reason in MISSING.items():
        print(f"skipped {name}: {reason}")
    names = [name for name in providers or (*FLOORS, *PROVIDERS) if name not in MISSING]
    for case in cases:
        rows = run_case(case, rounds, device, names)
        append_rows(out, rows)
        print(f"\n{case.name}: N={case.N} D={case.D} V={case.V} {case.dtype}, masked {case.masked:.0%}, flat groups {case.flat:.0%}")
        print("".join(f"{column:>17}" for column in COLUMNS))
        for row in rows:
            print("".join(f"{row.get(column, ''):>17}" for column in COLUMNS))
        for row in rows:
            if row.get("kernels"):
                print(f"milliseconds of {row['provider']}: {row['kernels']}")
    print(f"\nrows appended to {out}", flush=True)


def selected(cases: Sequence[Case], names: Sequence[str] | None) -> list[Case]:
    """The cases whose name contains one of `names`; all where names is None."""
    return [case for case in cases if names is None or any(name in case.name for name in names)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds; medians are reported")
    parser.add_argument("--set", choices=tuple(SETS), help="which cases (default: those of the device)")
    parser.add_argument("--tiny", action="store_const", dest="set", const="tiny", help="shapes that only show that everything runs")
    parser.add_argument("--cases", nargs="*", metavar="NAME", help="only the cases whose name contains one of these")
    parser.add_argument("--providers", nargs="*", default=(), choices=(*FLOORS, *PROVIDERS, *MISSING), help="default: all")
    parser.add_argument("--out", type=Path, help="CSV the rows are appended to (default: benchmarks/results/DEVICE.csv)")
    options = parser.parse_args(arguments)
    cases = selected(SETS[options.set or options.device], options.cases)
    out = options.out or ROOT / "benchmarks" / "results" / f"{options.device}.csv"
    measure(cases, options.device, options.rounds, out, options.providers)


if __name__ == "__main__":
    main()
