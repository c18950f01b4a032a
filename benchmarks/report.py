"""python -m benchmarks.report: the README's tables from the CSV rows. A test fails where they disagree."""

from __future__ import annotations

import csv
import re
import statistics
from pathlib import Path

from .runner import ROOT

RESULTS = ROOT / "benchmarks" / "results"
NAMES = {"eager": "eager logits", "torch-linear-ce": "torch `F.linear_cross_entropy`, chunked", "gft-chunked": "**gft-kernels** `chunked`"}


def read(path: Path) -> list[dict]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def cpu_table() -> str:
    """One line a provider from the newest rows of each case: time against eager's, peak memory, gradient error."""
    newest = {(row["case"], row["provider"]): row for row in read(RESULTS / "cpu.csv")}
    lines = [
        "| head | all rows active | GFT batch | peak extra memory | gradient error against fp64 |",
        "|---|---|---|---|---|",
    ]
    for provider, name in NAMES.items():
        every, batch = newest["small all-active", provider], newest["small gft-batch", provider]
        speeds = (f"{float(row['ms']):.0f} ms ({row['ratio_to_eager']}x)" for row in (every, batch))
        error = max(float(row[key]) for row in (every, batch) for key in ("dh_error", "dw_error"))
        lines.append(f"| {name} | {' | '.join(speeds)} | {batch['peak_mib']} MiB | {error:.0e} |")
    return "\n".join(lines)


def demo_table() -> str:
    """Means over the recorded seeds, with the range of the sampled accuracy."""
    rows = [row for row in read(RESULTS / "demo.csv") if row["variant"] == "shipped"]
    seeds = len({row["seed"] for row in rows})
    lines = [f"| means of {seeds} seeds | greedy | mean of 16 samples (range) |", "|---|---|---|"]
    for method in dict.fromkeys(row["method"] for row in rows):
        greedy = [100 * float(row["greedy"]) for row in rows if row["method"] == method]
        sampled = [100 * float(row["mean_of_16"]) for row in rows if row["method"] == method]
        lines.append(
            f"| {method} | {statistics.mean(greedy):.1f}% | {statistics.mean(sampled):.1f}% ({min(sampled):.1f}-{max(sampled):.1f}) |"
        )
    return "\n".join(lines)


def render(text: str) -> str:
    """`text` with every `<!-- NAME -->` ... `<!-- end -->` filled anew."""
    for name, table in (("cpu-table", cpu_table()), ("demo-table", demo_table())):
        text, found = re.subn(rf"<!-- {name} -->.*?<!-- end -->", f"<!-- {name} -->\n{table}\n<!-- end -->", text, flags=re.DOTALL)
        if found != 1:
            raise ValueError(f"README.md has {found} places for {name}; it needs one `<!-- {name} --> <!-- end -->`.")
    return text


def main() -> None:
    path = ROOT / "README.md"
    path.write_text(render(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
