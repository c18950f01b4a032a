"""python -m benchmarks: the head, forward and backward, against its peers on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from .cases import CPU_CASES
from .providers import MISSING
from .runner import append_rows, describe, run_case

COLUMNS = ("provider", "ms", "p20", "p80", "ratio_to_eager", "peak_mib", "dh_error", "dw_error")


@dataclass
class Options:
    """Benchmark the fused GFT loss on this machine's CPU."""

    rounds: int = 7
    """Interleaved rounds; medians are reported."""
    out: Path = Path(__file__).parent / "results" / "cpu.csv"
    """CSV the rows are appended to."""


def main(options: Options) -> None:
    for name, reason in MISSING.items():
        print(f"skipped {name}: {reason}")
    for case in CPU_CASES:
        rows = [describe(case) | row for row in run_case(case, options.rounds)]
        title = f"{case.name}: N={case.N} D={case.D} V={case.V}, masked {case.masked:.0%}, flat groups {case.flat:.0%}"
        table = Table(*COLUMNS, title=title)
        for row in rows:
            table.add_row(*(row[key] for key in COLUMNS))
        Console().print(table)
        append_rows(options.out, rows)


if __name__ == "__main__":
    main(tyro.cli(Options))
