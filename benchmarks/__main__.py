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
        table = Table("provider", "ms", "p20-p80", "eager = 1", "peak MiB", "dh error", "dw error",
                      title=f"{case.name}: N={case.N} D={case.D} V={case.V}, masked {case.masked:.0%}, flat groups {case.flat:.0%}")  # fmt: skip
        for row in rows:
            table.add_row(
                row["provider"],
                row["ms"],
                f"{row['p20']}-{row['p80']}",
                row["ratio_to_eager"],
                row["peak_mib"],
                row["dh_error"],
                row["dw_error"],
            )
        Console().print(table)
        append_rows(options.out, rows)


if __name__ == "__main__":
    main(tyro.cli(Options))
