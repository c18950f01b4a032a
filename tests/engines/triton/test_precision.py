"""Gradients and log-probs against fp64 of the same quantised inputs, and against eager's own error
in the same dtype.
"""

from __future__ import annotations

import pytest
import torch

from gft_kernels import Backend, Head, gft, linear_logprob, sft
from gft_kernels.engines.triton.configs import Config, use_config

from ...helpers.formulas import OBJECTIVES
from ...helpers.problems import RMS_LIMIT, Problem, fused, make_problem, naive, naive_logprobs, rms, rounding

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPE = (140, 67, 1101)  # off every block; 18 tiles, more than finalise.py takes at once
CHUNK = 40  # of about 100 unmasked rows: three chunks, the last ragged
BLOCKS = Config(64, 64, 32, 1, 1)  # larger than the interpreter's own, for speed


def far_from_tau(problem: Problem, tau: float) -> Problem:
    """Rows within 2% of tau lose their advantage: eager's rounding of a 16-bit logit may decide
    their C either way.
    """
    lp, _ = naive_logprobs(*(x.double() for x in problem[:2]), problem.targets, bias=problem.bias.double())
    return problem._replace(advantages=problem.advantages.masked_fill((lp.exp() / tau - 1).abs() < 0.02, 0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("name", "objective"), [("sft", sft()), ("gft-launcher", gft(0.1))])
def test_linear_policy_loss_is_as_near_to_fp64_as_eager_is(name, objective, dtype):
    problem = far_from_tau(make_problem(*SHAPE, dtype=dtype), 0.1)
    weights = (problem.targets != -100).float()  # a sum: fp16 gradients stay in its normal range
    want = naive(problem, OBJECTIVES[name][1], weights)
    with use_config(BLOCKS):
        ours, eager = (
            fused(problem, objective=objective, token_weights=weights, chunk_rows=CHUNK, backend=b)
            for b in ("triton", "eager")
        )
    for field in ("hidden", "weight", "bias"):
        exact = getattr(want, field)
        error, theirs = (getattr(x, field).double() - exact for x in (ours, eager))
        floor = rounding(exact, dtype)  # what storing the exact gradient would cost
        assert rms(error) <= RMS_LIMIT[dtype] * rms(exact), field
        assert rms(error) <= rms(theirs) + rms(floor), field
        assert error.abs().max() <= 2 * theirs.abs().max() + floor.abs().max(), field
    assert (ours.logprobs - want.logprobs).abs().max() <= 2e-5


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_linear_logprob_is_as_near_to_fp64_as_eager_is(dtype):
    problem = make_problem(*SHAPE, dtype=dtype)
    upstream = torch.randn(2, 140)

    def run(backend: str, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        hidden, weight = (x.to(dtype).requires_grad_() for x in problem[:2])
        out = linear_logprob(
            hidden, weight, problem.targets, head=Head(bias=problem.bias), backend=Backend(backend, chunk_rows=CHUNK)
        )
        torch.autograd.backward(tuple(out), tuple(upstream.to(out.logprobs.dtype)))
        return out.logprobs.double(), out.entropy.double(), hidden.grad.double(), weight.grad.double()

    with use_config(BLOCKS):
        want, ours, eager = run("eager", torch.float64), run("triton", dtype), run("eager", dtype)
    assert (ours[0] - want[0]).abs().max() <= 2e-5
    assert (ours[1] - want[1]).abs().max() <= 2e-5
    for got, theirs, exact in zip(ours[2:], eager[2:], want[2:], strict=True):
        assert rms(got - exact) <= RMS_LIMIT[dtype] * rms(exact)
        assert rms(got - exact) <= rms(theirs - exact) + rms(rounding(exact, dtype))
