"""python -m benchmarks.report: tables of README and docs/, and the figures, from the CSV rows.

A test fails where they disagree.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable

from ..record import RESULTS, ROOT, read_rows
from ..sparse import tables as sparse
from . import plot, staleness, tables


def demo_table() -> str:
    """Means over the recorded seeds, with the range of the sampled accuracy."""
    rows = [row for row in read_rows(RESULTS / "demo.csv") if row["variant"] == "shipped"]
    seeds = len({row["seed"] for row in rows})
    lines = [f"| means of {seeds} seeds | greedy | mean of 16 samples (range) |", "|---|---|---|"]
    for method in dict.fromkeys(row["method"] for row in rows):
        greedy = [100 * float(row["greedy"]) for row in rows if row["method"] == method]
        sampled = [100 * float(row["mean_of_16"]) for row in rows if row["method"] == method]
        lines.append(
            f"| {method} | {statistics.mean(greedy):.1f}% | {statistics.mean(sampled):.1f}% "
            f"({min(sampled):.1f}-{max(sampled):.1f}) |"
        )
    return "\n".join(lines)


PAGES: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"summary-table": tables.summary_table, "demo-table": demo_table},
    "docs/benchmarks.md": {
        "cpu-table": tables.cpu_table,
        "gpu-table": tables.gpu_table,
        "sparse-summary": sparse.summary_table,
        "loop-table": tables.loop_table,
    },
    "docs/column-sparse.md": sparse.TABLES,
}


def render(text: str, page: str = "README.md") -> str:
    """`text` with every `<!-- NAME -->` ... `<!-- end -->` filled anew.

    Raises:
        ValueError: not exactly one place for a table.
    """
    for name, table in PAGES[page].items():
        filled = f"<!-- {name} -->\n{table()}\n<!-- end -->".replace("\\", r"\\")  # re would read escapes
        text, found = re.subn(rf"<!-- {name} -->.*?<!-- end -->", filled, text, flags=re.DOTALL)
        if found != 1:
            raise ValueError(f"{page} has {found} places for {name}; it needs one `<!-- {name} --> <!-- end -->`.")
    return text


def main() -> None:
    """Fill the pages, draw the figures, and say which of them show rows of older code."""
    for page in PAGES:
        path = ROOT / page
        path.write_text(render(path.read_text(encoding="utf-8"), page), encoding="utf-8")
    plot.main()
    print(f"written: the tables of {', '.join(PAGES)}, and {', '.join(plot.figures())}")
    for warning in staleness.warnings():
        print(f"older than the code: {warning}")


if __name__ == "__main__":
    main()
