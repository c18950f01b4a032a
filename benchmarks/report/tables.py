"""The tables of heads and of the loop, written from the newest rows."""

from __future__ import annotations

import textwrap
from pathlib import Path

from ..heads.names import NAMES, is_own
from ..record import RESULTS, newest_run, read_rows
from .plot import SHAPES
from .style import Row, count

BATCHES = ("all-active", "gft-batch")
UNMEASURED = (
    "**Not measured yet**: no GPU figure stands in this repository. On yours, `make gpu` times in bf16 every head "
    "above and those that need a GPU (Liger FLCE, Cut Cross Entropy, verl's Triton head, QuACK) against the three "
    "bare GEMMs, at 8192 x 4096 x 131072, at the heads of Qwen2.5, Llama 3, Gemma and SmolLM2, and at 1k to 64k "
    "tokens until each runs out of memory."
)
Run = dict[str, Row]  # provider -> its row


def run_of(device: str, batch: str, folder: Path = RESULTS) -> Run:
    """The newest run of a batch at the shape that the tables show; empty where there is none."""
    head, N = SHAPES[device]
    return newest_run(read_rows(folder / f"{device}.csv"), case=f"{head} {batch}", N=N, inputs="random")


def error_of(*rows: Row) -> str:
    """The largest gradient error of these rows."""
    found = [float(row[key]) for row in rows for key in ("dh_error", "dw_error") if row[key]]
    return f"{max(found):.0e}" if found else ""


def time_of(row: Row) -> str:
    return f"{float(row['ms']):.0f} ms" if float(row["ms"]) >= 10 else f"{float(row['ms']):.2f} ms"


def in_order(run: Run) -> list[str]:
    """Providers as tables show them: others, ours, and the bare GEMMs at the end."""
    return sorted(run, key=lambda name: (name == "bare-gemms", is_own(name)))


def best_peer(run: Run) -> str:
    """The quickest head that passed the gate and is neither eager nor ours.

    Raises:
        ValueError: no peer was timed.
    """
    peers = [
        name for name, row in run.items() if row["ms"] and name not in ("eager", "bare-gemms") and not is_own(name)
    ]
    if not peers:
        raise ValueError("No peer was timed in this run: `make bench` installs and times them.")
    return min(peers, key=lambda name: float(run[name]["ms"]))


def summary_run(folder: Path = RESULTS) -> Run:
    """The newest run of a GFT batch: a GPU's where there is one, else a CPU's."""
    return run_of("gpu", "gft-batch", folder) or run_of("cpu", "gft-batch", folder)


def summary_table(folder: Path = RESULTS) -> str:
    """Four lines for the first screen, and a sentence that says what was measured, and where."""
    run = summary_run(folder)
    backend = "triton" if run.get("gft-triton", {}).get("ms") else "chunked"
    chosen = {
        "eager": "eager logits",
        best_peer(run): f"best peer: {NAMES[best_peer(run)]}",
        f"gft-{backend}": "**gft-kernels**, exact",
        f"gft-sparse-{backend}": "**gft-kernels**, column-sparse",
    }
    lines = [
        "| head | time of a GFT batch | against eager | peak extra memory | gradient error against fp64 |",
        "|---|---|---|---|---|",
    ]
    for name, text in chosen.items():
        row = run[name]
        cells = (text, time_of(row), f"{row['ratio_to_eager']}x", f"{row['peak_mib']} MiB", error_of(row))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n\n" + textwrap.fill(sentence(run["eager"]), 100)


def sentence(row: Row) -> str:
    """Shape, batch and machine of a row, in words."""
    machine = row["device"]
    if machine.startswith("cpu"):
        machine = f"{row['threads']} CPU threads ({machine.removeprefix('cpu ')})"
    text = (
        f"Head forward and backward in {row['dtype']} on {machine}, torch {row['torch']}: {row['N']} tokens, "
        f"hidden size {row['D']}, vocabulary {count(int(row['V']))}; {float(row['masked']):.0%} of the tokens masked, "
        f"{float(row['flat']):.0%} of the groups without spread."
    )
    if row["inputs"] != "random":
        return text
    return text + (
        " The inputs are random, so the column-sparse head finds nothing to leave out: "
        "[docs/benchmarks.md](docs/benchmarks.md) has it on a model's own activations."
    )


def head_rows(device: str) -> list[Row]:
    """The rows behind a device's table."""
    return [row for batch in BATCHES for row in run_of(device, batch).values()]


def head_table(device: str, folder: Path = RESULTS) -> str:
    """A line for each head: time of both batches, memory, gradient error; "" without rows."""
    every, batch = (run_of(device, name, folder) for name in BATCHES)
    if not every or not batch:
        return ""
    lines = [
        "| head | all rows active | GFT batch | peak extra memory | gradient error against fp64 |",
        "|---|---|---|---|---|",
    ]
    for name in (name for name in in_order(batch) if batch[name]["ms"]):
        both = (every.get(name, batch[name] | {"ms": ""}), batch[name])
        speeds = [f"{time_of(row)} ({row['ratio_to_eager']}x)" if row["ms"] else "left out" for row in both]
        cells = (NAMES[name], *speeds, f"{batch[name]['peak_mib']} MiB", error_of(*both))
        lines.append(f"| {' | '.join(cells)} |")
    left = [f"{NAMES.get(name, name)} ({row['note']})" for name, row in batch.items() if not row["ms"]]
    return "\n".join(lines) + (f"\n\nLeft out: {'; '.join(left)}." if left else "")


def cpu_table() -> str:
    return head_table("cpu")


def gpu_table() -> str:
    """The table of the published shape, or what stands for it while no GPU has been at hand."""
    return head_table("gpu") or UNMEASURED


def loop_runs() -> list[Run]:
    """The newest run of each model and batch size of the loop."""
    rows = [row | {"mode": "full"} for row in read_rows(RESULTS / "loop.csv")]
    sizes = dict.fromkeys((row["model"], row["tokens"]) for row in rows)
    return [newest_run(rows, model=model, tokens=tokens) for model, tokens in sizes]


def loop_table() -> str:
    """Optimiser steps a second and memory of the loop, a line for each model and head."""
    lines = ["| model, tokens a step | head | steps a second | peak extra memory |", "|---|---|---|---|"]
    for name, row in ((name, row) for run in loop_runs() for name, row in run.items()):
        left_out = f"left out: {row['note']}"
        speed = f"{float(row['steps_per_s']):.3g} ({row['ratio_to_eager']}x)" if row["steps_per_s"] else left_out
        lines.append(f"| {row['model']}, {row['tokens']} | {NAMES[name]} | {speed} | {row['peak_mib']} MiB |")
    return "\n".join(lines)
