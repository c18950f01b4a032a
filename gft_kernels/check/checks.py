"""Parity with fp64 and equal bits over ten runs: what decides the exit code."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .cases import results
from .problem import Problem

# RMS of the error over RMS of the gradient. 16 bits allow three roundings: dz, the scaled hidden
# state and the result. fp32 does not allow TF32.
GRADIENT_LIMIT = {torch.float32: 2e-6, torch.float16: 4e-4, torch.bfloat16: 3e-3}
LOGPROB_LIMIT = {"cpu": 2e-5, "cuda": 5e-4}  # nats
LOSS_LIMIT = 1e-4  # of the sum of w |log p|


def relative(found: Tensor, expected: Tensor) -> float:
    """Norm of the error over the norm of what is expected."""
    return float((found.double() - expected).norm() / expected.norm())


def parity(case: str, problem: Problem) -> tuple[bool, str]:
    """Errors of backend auto against eager in fp64, on the same quantised numbers."""
    found, expected = (results(case, problem, *run) for run in (("auto",), ("eager", torch.float64)))
    scored = found[1].isfinite()  # rows the head skipped hold NaN
    logprobs = float((found[1] - expected[1])[scored].abs().max())
    loss = float((found[0] - expected[0]).abs() / (problem.token_weights * expected[1].abs())[scored].sum())
    hidden, weight = (relative(found[i], expected[i]) for i in (2, 3))
    dtype, device = problem.hidden.dtype, problem.hidden.device.type
    rounding = GRADIENT_LIMIT[dtype]
    right = hidden <= rounding and weight <= rounding and logprobs <= LOGPROB_LIMIT[device] and loss <= LOSS_LIMIT
    return right, f"dhidden {hidden:.1e}  dweight {weight:.1e}  log p {logprobs:.1e}  loss {loss:.1e}"


def determinism(case: str, problem: Problem) -> tuple[bool, str]:
    """Whether ten runs of a case have the same bits."""
    first = results(case, problem, "auto")
    same = 1 + sum(all(torch.equal(a, b) for a, b in _pairs(first, results(case, problem, "auto"))) for _ in range(9))
    return same == 10, f"{same} of 10 runs have the same bits"


def _pairs(first: list[Tensor], second: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return [(a.nan_to_num(7.0), b.nan_to_num(7.0)) for a, b in zip(first, second, strict=True)]


def report(name: str, check: Callable[[], tuple[bool, str]]) -> bool:
    """Run a check and print its line. An exception is a failure."""
    try:
        passed, text = check()
    except Exception as error:
        passed, text = False, f"{type(error).__name__}: {error}"
    print(f"{'PASS' if passed else 'FAIL'}  {name:<48} {text}", flush=True)
    return passed
