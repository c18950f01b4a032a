"""The fused GFT loss against the authors' formula, written as their training code has it."""

from __future__ import annotations

import pytest
import torch

from gft_kernels import gft, linear_policy_loss

from ..helpers.problems import (
    RMS_LIMIT,
    Problem,
    Result,
    assert_equal_results,
    away_from_tau,
    fused,
    make_problem,
    rms,
    rounding,
)

SHAPES = (  # (N, D, V), 16 rows a chunk
    (1, 1, 1),  # p = 1: no gradient but a loss of 0
    (3, 5, 2),  # less than a chunk
    (33, 7, 31),  # three chunks, the last of one row
    (50, 33, 257),  # one off every power of two
    (70, 130, 600),  # a ragged last chunk
)


def authors(problem: Problem, tau: float) -> Result:
    """-log p * where(p < tau, p, 1) * A, mean over the valid tokens, on full logits in fp64."""
    hidden, weight, bias = (x.detach().double().requires_grad_() for x in problem[:3])
    valid = problem.targets != -100
    log_p = (hidden @ weight.T + bias).log_softmax(-1)
    lp = log_p.gather(1, problem.targets.clamp(min=0)[:, None]).squeeze(1)
    p = lp.detach().exp()
    losses = -lp * torch.where(p < tau, p, 1.0) * problem.advantages.double()
    loss = losses[valid].sum() / valid.sum()
    loss.backward()
    return Result(loss.detach(), (lp * valid).detach(), hidden.grad, weight.grad, bias.grad)


@pytest.mark.parametrize("backend", ["chunked", "triton"])
@pytest.mark.parametrize("tau", [0.1, 0.7])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_linear_policy_loss_is_authors_formula_in_fp64(shape, tau, backend):
    problem = make_problem(*shape)
    assert_equal_results(fused(problem, objective=gft(tau), backend=backend), authors(problem, tau))


@pytest.mark.parametrize("chunk_rows", [None, 16])
def test_linear_policy_loss_default_reduction_is_token_mean_in_fp64(chunk_rows):
    problem = make_problem(50, 33, 257)  # 1 / valid tokens has no exact fp32 form
    assert_equal_results(
        fused(problem, objective=gft(0.7), token_weights=None, chunk_rows=chunk_rows), authors(problem, 0.7)
    )


def pooled(results: list[Result], name: str) -> torch.Tensor:
    return torch.cat([getattr(r, name).double().flatten() for r in results])


@pytest.mark.parametrize("backend", ["chunked", "triton"])
@pytest.mark.parametrize("tau", [0.1, 0.7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_linear_policy_loss_is_as_accurate_as_its_dtype(dtype, tau, backend):
    margin = 1e-4 if dtype == torch.float32 else 0.02  # in 16 bits eager's own log-probs are per cents off
    problems = [away_from_tau(make_problem(150, 64, 301, dtype=dtype, seed=seed), tau, margin) for seed in range(4)]
    ours = [fused(p, objective=gft(tau), chunk_rows=60, backend=backend) for p in problems]
    eager = [fused(p, objective=gft(tau), backend="eager") for p in problems]
    want = [authors(p, tau) for p in problems]
    for name in ("hidden", "weight", "bias"):
        got, theirs, exact = (pooled(r, name) for r in (ours, eager, want))
        floor = rounding(exact, dtype)  # no 16-bit gradient can do better than its one rounding
        assert rms(got - exact) <= rms(theirs - exact) + rms(floor), name
        assert (got - exact).abs().max() <= 2 * (theirs - exact).abs().max(), name
        assert rms(got - exact) <= RMS_LIMIT[dtype] * rms(exact), name
    assert (pooled(ours, "logprobs") - pooled(want, "logprobs")).abs().max() <= 2e-5
    assert rms(pooled(ours, "loss") - pooled(want, "loss")) <= 2e-6 * rms(pooled(want, "loss"))


def test_linear_policy_loss_skipped_rows_change_nothing():
    problem = make_problem(50, 33, 257)
    hidden, weight = (x.clone().requires_grad_() for x in problem[:2])
    out = linear_policy_loss(
        hidden, weight, problem.targets, problem.advantages, token_weights=(problem.targets != -100).double()
    )
    out.loss.backward()
    skipped = (problem.targets != -100) & (problem.advantages == 0)
    want = fused(problem._replace(bias=torch.zeros(257).double()), token_weights=(problem.targets != -100).double())
    assert skipped.any()
    assert out.stats["active_tokens"] == (problem.targets != -100).sum() - skipped.sum()
    assert torch.equal(out.logprobs.isnan(), skipped)
    torch.testing.assert_close(
        (out.loss.detach(), hidden.grad, weight.grad), (want.loss, want.hidden, want.weight), rtol=1e-12, atol=1e-13
    )
