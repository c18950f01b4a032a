"""python -m benchmarks.sparse.training: curves with exact and column-sparse gradients, same seeds.

The task is the embedded one, as `gft train --objective gft` runs it. With --model and --data it is a
real model on the shortest examples of the data, one prompt with one expert response a step. Every
step of `metrics.jsonl` becomes a row of results/sparse_training.csv.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

from gft.data.files import load_examples

from ..record import MACHINE, RESULTS, append_rows, describe_machine

FIELDS = (
    *MACHINE,
    "task",
    "seed",
    "head",
    "step",
    "loss",
    "nll",
    "grad_norm",
    "eval_greedy",
    "eval_sampled",
    "sparse_columns",
    "sparse_error",
)
HEADS = {"exact": [], "sparse": ["--sparse", "1e-3"]}
SHORTEST = 400  # examples


def shortest(data: str, folder: Path) -> Path:
    """The shortest examples of `data` with an expert answer, as a file that gft reads."""
    found = [(e.prompt, r.text) for e in load_examples(data) for r in e.responses[:1] if r.source == "expert"]
    found.sort(key=lambda pair: len(pair[0]) + len(pair[1]))
    path = folder / "shortest.jsonl"
    lines = [
        json.dumps({"prompt": prompt, "completions": [text], "sources": ["expert"], "rewards": [1.0]})
        for prompt, text in found
    ]
    path.write_text("\n".join(lines[:SHORTEST]) + "\n")
    return path


def train(out: Path, options: Sequence[str]) -> list[dict]:
    """The metrics of one `gft train`, a dict a step; an evaluation's are joined to their step."""
    command = [sys.executable, "-m", "gft.cli", "train", "--out", str(out), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    steps: dict[int, dict] = {}
    for line in (out / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        steps.setdefault(row["step"], {}).update(row)
    return [steps[step] for step in sorted(steps)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sparse.training", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--model", type=Path, help="local transformers folder")
    parser.add_argument("--data", help="data with expert answers")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="*", default=(0, 1, 2))
    parser.add_argument("--keep", type=Path, help="leave the runs, with their models, in this folder")
    parser.add_argument("--out", type=Path, default=RESULTS / "sparse_training.csv")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(2) as pool:
        folder = options.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        task, recipe = "sort letters", ["--objective", "gft", "--steps", str(options.steps)]
        if options.model:
            task = options.model.name
            data = shortest(options.data, folder)
            recipe += [
                "--model",
                str(options.model),
                "--data",
                str(data),
                "--experts",
                "1",
                "--teachers",
                "0",
                "--own",
                "0",
            ]
            recipe += ["--prompts-per-step", "1", "--lr", "1e-5"]
        runs = {
            (seed, head): pool.submit(train, folder / f"{head}-{seed}", [*recipe, "--seed", str(seed), *extra])
            for seed, (head, extra) in product(options.seeds, HEADS.items())
        }
        machine = describe_machine()
        for (seed, head), run in runs.items():
            rows = [
                machine
                | {"task": task, "seed": seed, "head": head}
                | {name: row[name] for name in FIELDS if name in row}
                for row in run.result()
            ]
            append_rows(options.out, rows, FIELDS)
            print(f"{task}, seed {seed}, {head}: {len(rows)} rows, last {rows[-1]}", flush=True)


if __name__ == "__main__":
    main()
