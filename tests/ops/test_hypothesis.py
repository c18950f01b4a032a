"""The fused loss and the log-prob op against the naive fp64 answer on drawn problems."""

from __future__ import annotations

from typing import NamedTuple

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gft_kernels import gft, linear_logprob, linear_policy_loss

from ..helpers.formulas import gft_loss
from ..helpers.problems import (
    RMS_LIMIT,
    Problem,
    make_problem,
    naive,
    naive_logprobs,
    rms,
    rounding,
    settings_of,
    token_mean,
)

LAYOUTS = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.T.contiguous().T,
    "strided": lambda x: torch.stack([x, torch.full_like(x, torch.nan)], dim=-1)[..., 0],
}


class Draw(NamedTuple):
    problem: Problem
    tau: float
    settings: dict
    layouts: tuple[str, str]


@st.composite
def draws(draw, dtypes) -> Draw:
    n, d, v = draw(st.integers(0, 70)), draw(st.integers(1, 130)), draw(st.integers(1, 600))
    dtype, masked = draw(st.sampled_from(dtypes)), draw(st.sampled_from([0.0, 0.3, 0.9, 1.0]))
    problem = make_problem(n, d, v, seed=draw(st.integers(0, 2**16)), dtype=dtype, masked=masked)
    if masked == 1:
        problem = problem._replace(targets=torch.full((n,), -100))
    sign = draw(st.sampled_from([-1.0, 0.0, 1.0, None]))
    if sign is not None:
        problem = problem._replace(advantages=problem.advantages.abs() * sign)
    settings = {
        "chunk_rows": draw(st.sampled_from([None, 1, 3, 16, 64])),
        "temperature": draw(st.sampled_from([1.0, 0.6, 2.0])),
        "softcap": draw(st.sampled_from([None, 8.0])),
        "skip_rows": draw(st.booleans()),
    }
    tau = draw(st.sampled_from([-0.5, 0.0, 0.1, 0.7, 1.0, 2.0]))
    return Draw(problem, tau, settings, (draw(st.sampled_from(list(LAYOUTS))), draw(st.sampled_from(list(LAYOUTS)))))


def transforms_of(case: Draw) -> dict:
    return {"temperature": case.settings["temperature"], "softcap": case.settings["softcap"]}


def leaves_of(case: Draw) -> list[torch.Tensor]:
    """Fresh leaves for hidden and weight in the drawn layouts, and for the bias."""
    shaped = [LAYOUTS[layout](x.clone()) for layout, x in zip(case.layouts, case.problem[:2], strict=True)]
    return [x.detach().requires_grad_() for x in (*shaped, case.problem.bias.clone())]


def without_flips(case: Draw) -> Problem:
    """Rows whose p is within 1e-4 of tau lose their advantage: rounding may decide their C either
    way.
    """
    problem = case.problem
    lp, _ = naive_logprobs(
        *(x.double() for x in problem[:2]), problem.targets, bias=problem.bias.double(), **transforms_of(case)
    )
    near = (lp.exp() - case.tau).abs() <= 1e-4 * case.tau
    return problem._replace(advantages=problem.advantages.masked_fill(near, 0))


def ran(case: Draw, problem: Problem, weights: Tensor, backend: str):
    """(result, hidden, weight, bias) of the loss, gradients in the leaves."""
    hidden, weight, bias = leaves_of(case)
    out = linear_policy_loss(
        hidden,
        weight,
        problem.targets,
        problem.advantages,
        objective=gft(case.tau),
        token_weights=weights,
        **settings_of(backend, bias, **case.settings),
    )
    out.loss.backward()
    return out, hidden, weight, bias


def check(case: Draw) -> None:
    problem = without_flips(case)
    weights = token_mean(problem.targets)
    want = naive(problem, lambda lp, a, old, ref: gft_loss(lp, a, case.tau), weights, **transforms_of(case))
    out, hidden, weight, bias = ran(case, problem, weights, "chunked")
    eager = ran(case, problem, weights, "eager")[1:]
    dtype = hidden.dtype
    size = rms(
        torch.cat([want.hidden.flatten(), want.weight.flatten(), want.bias])
    )  # a gradient may cancel to nothing on its own
    for x, same_by_eager, exact in zip(
        (hidden, weight, bias), eager, (want.hidden, want.weight, want.bias), strict=True
    ):
        got = x.grad
        floor = rms(rounding(exact, dtype)) if exact.numel() else 0.0
        error = rms(got.double() - exact) if exact.numel() else 0.0
        own = rms(exact) if exact.numel() else 0.0  # nor is a lone large entry averaged
        lost_by_eager = (
            rms(same_by_eager.grad.double() - exact) if exact.numel() else 0.0
        )  # a low temperature costs every head digits
        assert error <= max(RMS_LIMIT[dtype] * max(size, own), lost_by_eager) + floor
    scored = ~out.logprobs.isnan()
    precision = 1e-11 if dtype == torch.float64 else 2e-5
    assert case.settings["skip_rows"] or scored.all()
    assert torch.all((out.logprobs[scored] - want.logprobs[scored]).abs() <= precision)
    assert (out.loss - want.loss).abs() <= precision * problem.advantages.abs().sum().clamp(min=1)


common = settings(deadline=None, derandomize=True, database=None)


@settings(common, max_examples=300)
@given(draws([torch.float64]))
def test_linear_policy_loss_drawn_problems_in_fp64(case):
    check(case)


@settings(common, max_examples=300)
@given(draws([torch.float32, torch.float16, torch.bfloat16]))
def test_linear_policy_loss_drawn_problems_in_lower_precision(case):
    check(case)


@settings(common, max_examples=200)
@given(draws([torch.float64]), st.integers(0, 2**16))
def test_linear_logprob_drawn_problems_in_fp64(case, seed):
    problem = case.problem
    upstream = (
        torch.randn(2, len(problem.targets), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        .mul(2)
        .trunc()
    )
    ours, theirs = leaves_of(case), [x.clone().requires_grad_() for x in problem[:3]]
    got = linear_logprob(*ours[:2], problem.targets, **settings_of("chunked", ours[2], **case.settings))
    want = naive_logprobs(*theirs[:2], problem.targets, bias=theirs[2], **transforms_of(case))
    torch.autograd.backward(got, tuple(upstream))
    torch.autograd.backward(want, tuple(upstream))
    torch.testing.assert_close(tuple(got), want, rtol=1e-10, atol=1e-11)
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x.grad, y.grad, rtol=1e-8, atol=1e-10)
