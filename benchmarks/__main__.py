"""python -m benchmarks: the head, forward and backward, against its peers on this machine.

It needs torch alone and runs from the tree, on a machine where nothing is installed. Peers that are
missing are named.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from .heads.ours import FLOORS, missing, providers
from .inputs.cases import SETS, Case
from .record import RESULTS, append_rows
from .timing.runner import FIELDS, run_case

COLUMNS = (
    "provider",
    "mode",
    "ms",
    "p20",
    "p80",
    "ratio_to_eager",
    "over_bare_gemms",
    "peak_mib",
    "loss_error",
    "dh_error",
    "dw_error",
)
WIDTHS = (21, 9, 10, 10, 10, 15, 16, 10, 11, 10, 10)


def measure(
    cases: Sequence[Case], device: str, rounds: int, out: Path, names: Sequence[str] = (), every_mode: bool = False
) -> None:
    """Run the cases; print a table for each and append its rows to `out`."""
    for name, reason in missing().items():
        if not names or name in names:
            print(f"skipped {name}: {reason}")
    names = [name for name in names or (*FLOORS, *providers()) if name not in missing()]
    for case in cases:
        print(
            f"\n{case.label}: D={case.D} V={case.V} {case.dtype}, masked {case.masked:.0%}, flat groups {case.flat:.0%}"
        )
        try:
            rows = run_case(case, rounds, device, names)
        except FileNotFoundError as error:
            print(f"skipped: {error}")
            continue
        append_rows(out, rows, FIELDS)
        print_table(rows, every_mode)
    print(f"\nrows appended to {out}", flush=True)


def print_table(rows: Sequence[dict], every_mode: bool) -> None:
    print("".join(f"{column:>{width}}" for column, width in zip(COLUMNS, WIDTHS, strict=True)))
    for row in rows:
        if "ms" in row and (every_mode or row["mode"] == "full"):
            print("".join(f"{row.get(column, ''):>{width}}" for column, width in zip(COLUMNS, WIDTHS, strict=True)))
    for row in rows:
        if "ms" not in row:
            print(f"{row['provider']:>{WIDTHS[0]}}  left out: {row['note']}")
        if row.get("kernels"):
            print(f"milliseconds of {row['provider']}: {row['kernels']}")


def selected(cases: Sequence[Case], labels: Sequence[str] | None) -> list[Case]:
    """The cases whose label (name, N, inputs) contains one of `labels`; all where it is None."""
    return [case for case in cases if labels is None or any(label in case.label for label in labels)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds; medians are reported")
    parser.add_argument("--set", choices=tuple(SETS), help="which cases (default: those of the device)")
    parser.add_argument(
        "--cases",
        nargs="*",
        metavar="LABEL",
        help="only the cases whose label, such as 'small gft-batch N=2048 random', contains one of these",
    )
    parser.add_argument(
        "--providers", nargs="*", default=(), choices=(*FLOORS, *providers(), *missing()), help="default: all"
    )
    parser.add_argument(
        "--modes", action="store_true", help="print forward and backward apart; the rows always have them"
    )
    parser.add_argument(
        "--out", type=Path, help="CSV the rows are appended to (default: benchmarks/results/DEVICE.csv)"
    )
    options = parser.parse_args(arguments)
    cases = selected(SETS[options.set or options.device], options.cases)
    measure(
        cases,
        options.device,
        options.rounds,
        options.out or RESULTS / f"{options.device}.csv",
        options.providers,
        options.modes,
    )


if __name__ == "__main__":
    main()
