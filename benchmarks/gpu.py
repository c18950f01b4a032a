"""python -m benchmarks.gpu: on a GPU machine, from the tree, the gpu tests and then the benchmarks.

`--dry-run` goes the same way on a CPU with tiny shapes, so that the first real machine meets no surprise. Rows go to $OUT
where it is set, else to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from .__main__ import measure
from .cases import GPU_CASES, TINY_CASES
from .runner import ROOT


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on the CPU")
    options = parser.parse_args(arguments)
    if not options.dry_run and not torch.cuda.is_available():
        print(f"no CUDA or ROCm device is visible to torch {torch.__version__}; --dry-run tries the same steps on the CPU.")
        return 1
    device = "cpu" if options.dry_run else "cuda"
    tests = subprocess.run([sys.executable, "-m", "pytest", "-m", "gpu", "tests/gpu", "-p", "no:cacheprovider"], cwd=ROOT)
    if tests.returncode:
        print("the gpu tests failed: nothing is measured until they pass.")
        return tests.returncode
    results = Path(os.environ.get("OUT") or ROOT / "benchmarks" / "results")
    measure(TINY_CASES if options.dry_run else GPU_CASES, device, rounds=7, out=results / ("dry-run.csv" if options.dry_run else "gpu.csv"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
