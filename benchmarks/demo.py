"""python -m benchmarks.demo: the embedded comparison (`gft train` without arguments) over seeds.

One seed alone can mislead by five points, so the table and the figure are means over seeds. Each
seed runs as `make demo` runs it, in a process of one thread. It adds a row a method to
results/demo.csv, and a row an evaluation to results/demo_curves.csv.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import platform
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch
import transformers
from rich.console import Console
from transformers.utils import logging as transformers_logging

from gft.demo.compare import compare, read_curves
from gft.settings.config import EMBEDDED, TrainConfig

from .record import MACHINE, RESULTS, append_rows, describe_machine

SAMPLES = EMBEDDED.evaluate.eval_samples
VARIANT = "shipped"  # the task as it is; older rows also hold one whose expert writes ascending
SAME_MACHINE = ("device", "cpu", "python", "torch", "transformers")  # where these agree, so do all digits
FIELDS = (
    *MACHINE,
    "cpu",
    "transformers",
    "variant",
    "seed",
    "method",
    "greedy",
    f"mean_of_{SAMPLES}",
    "updates",
    "sequences_per_update",
    "own_per_update",
    "seconds",
)
CURVE_FIELDS = ("date", "commit", "seed", "method", "step", "greedy", f"mean_of_{SAMPLES}", "grad_norm")

Row = dict[str, str]


def describe() -> Row:
    """The machine, and what else the digits hang on: processor and version of transformers."""
    return {**describe_machine(), "threads": "1", "cpu": processor(), "transformers": transformers.__version__}


def processor() -> str:
    """Name of the CPU and its vector instructions, which decide how sums are rounded."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()} {torch.backends.cpu.get_cpu_capability()}"


def one_seed(seed: int, recipe: TrainConfig = EMBEDDED) -> tuple[list[Row], list[Row]]:
    """Rows of the table and of the curves of one seed's comparison.

    Raises:
        RuntimeError: a reward failed (a checker that a busy machine did not let finish, say), so
            that the numbers would be those of other data.
    """
    transformers_logging.disable_progress_bar()  # one for every checkpoint says nothing here
    with tempfile.TemporaryDirectory() as folder:
        config = replace(recipe, seed=seed, out=Path(folder))
        results = compare(config, Console(file=io.StringIO()))
        curves = read_curves(config)
    failed = sum(row.get("reward_errors", 0) + row.get("eval_errors", 0) for rows in curves.values() for row in rows)
    if failed:
        raise RuntimeError(f"seed {seed}: {failed} responses could not be scored; nothing is recorded.")
    return table_rows(seed, results), curve_rows(seed, curves)


def table_rows(seed: int, results: dict[str, dict]) -> list[Row]:
    return [
        {
            "variant": VARIANT,
            "seed": str(seed),
            "method": method,
            **accuracies(r["greedy"], r["sampled"]),
            "updates": str(r.get("updates", 0)),
            "sequences_per_update": str(r.get("sequences", 0)),
            "own_per_update": str(r.get("own", 0)),
            "seconds": f"{r['seconds']:.1f}",
        }
        for method, r in results.items()
    ]


def curve_rows(seed: int, curves: dict[str, list[dict]]) -> list[Row]:
    """A row for every evaluation; that of the base, which all curves start from, once.

    The gradient norm of the update before, to the last digit of fp32, shows what few samples do: a
    change of rounding, which after 150 updates can have moved an accuracy by five points.
    """
    found = {}
    for method, rows in curves.items():
        norms = {row["step"]: f"{row['grad_norm']:.9g}" for row in rows if "grad_norm" in row}
        for row in (row for row in rows if "eval_greedy" in row):
            shares = accuracies(row["eval_greedy"], row["eval_sampled"])
            step = row["step"]
            found[method if step else "base", str(step)] = {**shares, "grad_norm": norms.get(step, "")}
    return [{"seed": str(seed), "method": method, "step": step, **row} for (method, step), row in found.items()]


def accuracies(greedy: float, sampled: float) -> Row:
    """Shares of 256 and of 4,096 responses: four digits tell any two apart."""
    return {"greedy": f"{greedy:.4f}", f"mean_of_{SAMPLES}": f"{sampled:.4f}"}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=8, help="how many, from 0 on; about 3 minutes of a core each")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="seeds at once (default: the cores)")
    parser.add_argument("--out", type=Path, default=RESULTS / "demo.csv")
    parser.add_argument("--curves", type=Path, default=RESULTS / "demo_curves.csv")
    options = parser.parse_args(arguments)
    machine = describe()
    fresh = multiprocessing.get_context("spawn")  # a fork of a process with torch's threads may hang
    with ProcessPoolExecutor(options.jobs, mp_context=fresh) as pool:
        for rows, curves in pool.map(one_seed, range(options.seeds)):
            append_rows(options.out, [machine | row for row in rows], FIELDS)
            run = {key: machine[key] for key in ("date", "commit")}
            append_rows(options.curves, [run | row for row in curves], CURVE_FIELDS)
            shown = [f"{row['method']} {row['greedy']} {row[f'mean_of_{SAMPLES}']}" for row in rows]
            print(f"seed {rows[0]['seed']}: greedy, mean of {SAMPLES}:", "   ".join(shown), flush=True)
    print(f"rows appended to {options.out} and {options.curves}")


if __name__ == "__main__":
    main()
