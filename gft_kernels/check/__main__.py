"""python -m gft_kernels.check: are the ops right on this machine, and what do they cost?

Parity with fp64 and equal bits over ten runs decide the exit code. Memory and speed against eager
logits are reported. `--config-search` times launch configurations of the GEMM kernels on this
device instead.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial

import torch

from ..env import versions
from ..ops.backends import engine_name
from .cases import CASES
from .checks import determinism, parity, report
from .config_search import config_search
from .costs import costs
from .problem import make_problem


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m gft_kernels.check", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--config-search", action="store_true", help="time launch configurations at the sizes below")
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--vocab", type=int, default=131072)
    options = parser.parse_args(arguments)
    device = options.device
    for name, value in versions().items():
        print(f"{name:<14} {value}")
    if device == "cuda" and not torch.cuda.is_available():
        print(f"\nno CUDA or ROCm device is visible to torch {torch.__version__}.")
        return 1
    halves = (torch.bfloat16,) if device == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False) else ()
    if options.config_search:
        if device == "cpu":
            print("\n--config-search times Triton kernels: it needs a CUDA or ROCm device.")
            return 1
        return config_search(options.rows, options.hidden, options.vocab, (*halves, torch.float16)[0])
    print(f"backend        auto is {engine_name('auto', torch.device(device), torch.float32)!r}\n")
    passed = True
    for dtype in (*halves, torch.float16, torch.float32):
        problem = make_problem(*((384, 512, 32001) if device == "cuda" else (96, 48, 1001)), dtype, device)
        short = str(dtype).removeprefix("torch.")
        for case in CASES:
            passed &= report(f"parity {short}: {case}", partial(parity, case, problem))
        passed &= report(f"determinism {short}", partial(determinism, "gft, group rewards", problem))
    try:
        costs(device, torch.float32 if device == "cpu" else (*halves, torch.float16)[0])
    except torch.OutOfMemoryError as error:
        print(f"      costs were not measured: {error}")
    print("\nall checks passed" if passed else "\nsome checks FAILED")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
