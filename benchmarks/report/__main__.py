"""python -m benchmarks.report: tables of README and docs/, and the figures, from the CSV rows.

A test fails where they disagree.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from ..architectures import tables as architectures
from ..record import RESULTS, ROOT, read_rows
from ..sparse import tables as sparse
from . import demo, plot, staleness, tables


def demo_table() -> str:
    """The embedded comparison over the seeds of its newest run."""
    return demo.table(demo.newest(read_rows(RESULTS / "demo.csv")))


PAGES: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"summary-table": tables.summary_table},
    "docs/benchmarks.md": {
        "cpu-table": tables.cpu_table,
        "gpu-table": tables.gpu_table,
        "sparse-summary": sparse.summary_table,
        "loop-table": tables.loop_table,
    },
    "docs/method.md": {"demo-table": demo_table},
    "docs/column-sparse.md": sparse.TABLES,
    "docs/architectures-tested.md": architectures.TABLES,
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
