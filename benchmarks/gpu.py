"""python -m benchmarks.gpu: the gpu tests, the benchmarks and the loop, on a GPU machine.

It runs from the tree, with torch alone. Each case runs in a process of its own within what is left
of --minutes, so that a crash or a time limit costs that case alone; its row says so. Failed tests
do not keep the benchmarks from running (every provider passes a gradient gate of its own), but the
exit code tells. `--dry-run` goes the same way on a CPU with tiny shapes. Rows go to $OUT where it
is set, else to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from gft_kernels import env

from .__main__ import selected
from .inputs.cases import SETS, Case
from .record import RESULTS, ROOT, append_rows, describe_machine
from .timing.runner import FIELDS, describe_case

LOOP_NEEDS = ("transformers", "rich", "pyarrow", "matplotlib", "mpmath")
TEST_SECONDS = 270  # at most; the benchmarks need the rest
DRY_RUN = {"GFT_KERNELS_DRY_RUN": "1", "TRITON_INTERPRET": "1"}


def run(command: Sequence[str], seconds: float, dry_run: bool) -> str:
    """Run a module of this tree; "" where it succeeded, else what went wrong.

    Out of time it is interrupted, so that pytest sums up.
    """
    environment = {**os.environ, **(DRY_RUN if dry_run else {}), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen([sys.executable, "-m", *command], cwd=ROOT, env=environment) as process:
        try:
            code = process.wait(max(seconds, 1))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
            return f"stopped after {seconds:.0f} s"
    return f"ended with {code}" if code else ""


def test(keyword: str | None, seconds: float, dry_run: bool) -> str:
    """The gpu tests, those matching a pytest expression where one is given."""
    chosen = [] if keyword is None else ["-k", keyword]
    options = ["-p", "no:cacheprovider", "-o", "timeout=120", "--tb=short", "-rsf", "--durations=8"]
    return run(["pytest", "-m", "gpu", "tests/gpu", *options, *chosen], seconds, dry_run)


def bench(case: Case, seconds: float, options: argparse.Namespace, out: Path) -> str:
    """One case in its own process; a failure leaves a row."""
    device, rounds = ("cpu", "1") if options.dry_run else ("cuda", str(options.rounds))
    name = next(name for name in sets(options) if case in SETS[name])
    command = [
        "benchmarks",
        "--device",
        device,
        "--set",
        name,
        "--cases",
        case.label,
        "--rounds",
        rounds,
        "--out",
        str(out),
    ]
    if options.providers:
        command += ["--providers", *options.providers]
    failed = "no time was left" if seconds < 5 else run(command, seconds, options.dry_run)
    if failed:
        append_rows(out, [describe_machine(device) | describe_case(case) | {"provider": "all", "note": failed}], FIELDS)
    return failed


def train(seconds: float, options: argparse.Namespace, folder: Path) -> str:
    """The loop with each head, where what it imports is installed."""
    absent = [name for name in LOOP_NEEDS if importlib.util.find_spec(name) is None]
    if absent:
        print(f"skipped the loop: {', '.join(absent)} not installed")
        return ""
    sizes = ["--tiny"] if options.dry_run else ["--device", "cuda", "--groups", "32", "--micro-batch", "64"]
    command = [
        "benchmarks.loop",
        *sizes,
        "--out",
        str(folder / ("dry-run-loop.csv" if options.dry_run else "loop.csv")),
    ]
    return "no time was left" if seconds < 5 else run(command, seconds, options.dry_run)


def sets(options: argparse.Namespace) -> tuple[str, ...]:
    """The sets of cases of a run, in their order."""
    return ("interpreter",) if options.dry_run else ("cuda", "cuda-scaling")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on the CPU")
    parser.add_argument("--minutes", type=float, default=7.5, help="for everything")
    parser.add_argument("--skip-tests", action="store_true")
    parser.add_argument("--skip-loop", action="store_true")
    parser.add_argument("--tests", metavar="EXPRESSION", help="only the gpu tests that match, as pytest -k")
    parser.add_argument(
        "--cases",
        nargs="*",
        metavar="LABEL",
        help="only the cases whose label contains one of these; none: no benchmarks",
    )
    parser.add_argument("--providers", nargs="*", default=(), metavar="NAME", help="default: all")
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds; medians are reported")
    options = parser.parse_args(arguments)
    deadline = time.monotonic() + 60 * options.minutes
    if not options.dry_run and not torch.cuda.is_available():
        print(
            f"no CUDA or ROCm device is visible to torch {torch.__version__}; --dry-run tries the same steps on the "
            "CPU."
        )
        return 1
    print("\n".join(f"{name:<14} {value}" for name, value in env.versions().items()), flush=True)
    failures = {}
    if not options.skip_tests:
        failures["tests"] = test(options.tests, min(TEST_SECONDS, deadline - time.monotonic()), options.dry_run)
    folder = Path(os.environ.get("OUT") or RESULTS)
    out = folder / ("dry-run.csv" if options.dry_run else "gpu.csv")
    for case in selected([case for name in sets(options) for case in SETS[name]], options.cases):
        failures[case.label] = bench(case, deadline - time.monotonic(), options, out)
    if not options.skip_loop:
        failures["loop"] = train(deadline - time.monotonic(), options, folder)
    for stage, failure in failures.items():
        print(f"{stage}: {failure or 'done'}")
    return int(any(failures.values()))


if __name__ == "__main__":
    sys.exit(main())
