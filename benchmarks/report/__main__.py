"""python -m benchmarks.report: tables of README and docs/, and the figures, from the CSV rows.

A test fails where they disagree.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable

from ..heads.names import NAMES, is_own
from ..record import RESULTS, ROOT, newest_run, read_rows
from ..sparse import tables
from . import plot

TIMED = ("all-active", "gft-batch")


def head_table(file: str, head: str, N: str) -> str:
    """One line a provider: time and ratio of both batches, peak memory, worst gradient error;
    floors and the excluded at the end.
    """
    rows = read_rows(RESULTS / file)
    runs = {batch: newest_run(rows, case=f"{head} {batch}", N=N, inputs="random") for batch in TIMED}
    if not all(runs.values()):
        return ""
    lines = [
        "| head | all rows active | GFT batch | peak extra memory | gradient error against fp64 |",
        "|---|---|---|---|---|",
    ]
    ordered = sorted(
        runs["gft-batch"].values(), key=lambda row: (row["provider"] == "bare-gemms", is_own(row["provider"]))
    )
    for provider in [row["provider"] for row in ordered if row["ms"]]:
        every, batch = (run[provider] for run in runs.values())
        speeds = " | ".join(
            f"{float(row['ms']):.0f} ms ({row['ratio_to_eager']}x)" if row["ms"] else "left out"
            for row in (every, batch)
        )
        found = [float(row[key]) for row in (every, batch) for key in ("dh_error", "dw_error") if row[key]]
        lines.append(
            f"| {NAMES[provider]} | {speeds} | {batch['peak_mib']} MiB | {f'{max(found):.0e}' if found else ''} |"
        )
    left = [f"{NAMES[name]} ({row['note']})" for name, row in runs["gft-batch"].items() if not row["ms"]]
    return "\n".join(lines) + (f"\n\nLeft out: {'; '.join(left)}." if left else "")


def cpu_table() -> str:
    return head_table("cpu.csv", "small", "1024")


def gpu_table() -> str:
    """The table of the published shape, or what stands for it while no GPU has been at hand."""
    table = head_table("gpu.csv", "published", "8192")
    return table or (
        "**Not measured yet**: no GPU figure stands in this repository. On yours, `make gpu` times in bf16 every "
        "head above and those that "
        "need a GPU (Liger FLCE, Cut Cross Entropy, verl's Triton head, QuACK) against the three bare GEMMs, at 8192 "
        "x 4096 x 131072, at "
        "the heads of Qwen2.5, Llama 3, Gemma and SmolLM2, and at 1k to 64k tokens until each runs out of memory."
    )


def loop_table() -> str:
    """Optimiser steps a second and memory of the loop, a line for each model and head."""
    rows = read_rows(RESULTS / "loop.csv")
    lines = ["| model, tokens a step | head | steps a second | peak extra memory |", "|---|---|---|---|"]
    for model, tokens in dict.fromkeys((row["model"], row["tokens"]) for row in rows):
        for provider, row in newest_run([row | {"mode": "full"} for row in rows], model=model, tokens=tokens).items():
            speed = (
                f"{float(row['steps_per_s']):.3g} ({row['ratio_to_eager']}x)"
                if row["steps_per_s"]
                else f"left out: {row['note']}"
            )
            lines.append(f"| {model}, {tokens} | {NAMES[provider]} | {speed} | {row['peak_mib']} MiB |")
    return "\n".join(lines)


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
    "README.md": {
        "cpu-table": cpu_table,
        "gpu-table": gpu_table,
        "sparse-summary": tables.summary_table,
        "loop-table": loop_table,
        "demo-table": demo_table,
    },
    "docs/column-sparse.md": tables.TABLES,
}


def render(text: str, page: str = "README.md") -> str:
    """`text` with every `<!-- NAME -->` ... `<!-- end -->` filled anew.

    Raises:
        ValueError: not exactly one place for a table.
    """
    for name, table in PAGES[page].items():
        filled = f"<!-- {name} -->\n{table()}\n<!-- end -->"
        text, found = re.subn(
            rf"<!-- {name} -->.*?<!-- end -->", lambda _, filled=filled: filled, text, flags=re.DOTALL
        )
        if found != 1:
            raise ValueError(f"{page} has {found} places for {name}; it needs one `<!-- {name} --> <!-- end -->`.")
    return text


def main() -> None:
    for page in PAGES:
        path = ROOT / page
        path.write_text(render(path.read_text(encoding="utf-8"), page), encoding="utf-8")
    plot.main()


if __name__ == "__main__":
    main()
