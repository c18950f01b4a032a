"""Every backend against the naive fp64 answer: objectives, reductions, transforms, dtypes, strides,
what needs a gradient.
"""

from __future__ import annotations

import pytest
import torch

from gft_kernels import Backend, GroupRewards, Head, LinearPolicyLoss, gft, kl, linear_logprob, linear_policy_loss, sft

from ..helpers.formulas import COEFFICIENTS, OBJECTIVES
from ..helpers.problems import (
    Problem,
    assert_accurate,
    assert_equal_results,
    fused,
    make_problem,
    naive,
    naive_logprobs,
    naive_weights,
    settings_of,
)

BACKENDS = ("eager", "chunked", "triton")
TRANSFORMS = {
    "plain": {},
    "cool": {"temperature": 0.6},
    "granite": {"scale": 0.125, "temperature": 1.3},
    "gemma": {"softcap": 3.0},  # low enough to bend most logits
    "all": {"scale": 1.5, "softcap": 4.0, "temperature": 0.8},
}
REDUCTIONS = ("token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm", "sum")
# Every objective once, plain; then every transform and reduction with objectives that use p, old
# and ref.
CASES = (
    *((name, "token-mean", "plain") for name in OBJECTIVES),
    *(("gft", "sum", transform) for transform in TRANSFORMS),
    *(("gft+kl", reduction, "all") for reduction in REDUCTIONS),
    ("dapo", "seq-mean-token-mean", "gemma"),
    ("luffy", "seq-mean-token-sum-norm", "granite"),
)


def inputs_of(problem: Problem) -> dict:
    return {"old_logprobs": problem.old_logprobs, "ref_logprobs": problem.ref_logprobs}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("name", "reduction", "transform"), CASES)
def test_linear_policy_loss_matches_naive(name, reduction, transform, backend):
    problem = make_problem(50, 11, 37)
    objective, formula = OBJECTIVES[name]
    transforms = TRANSFORMS[transform]
    weights = naive_weights(reduction, problem.targets != -100, problem.sequence_ids)
    got = fused(
        problem,
        backend=backend,
        transforms=transforms,
        objective=objective,
        token_weights=weights,
        **inputs_of(problem),
    )
    assert_equal_results(got, naive(problem, formula, weights, **transforms), rtol=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_linear_logprob_matches_naive(transform, backend):
    problem, transforms = make_problem(50, 11, 37), TRANSFORMS[transform]
    upstream = torch.randn(2, 50, dtype=torch.float64)
    ours, theirs = ([x.clone().requires_grad_() for x in problem[:3]] for _ in range(2))
    settings = settings_of(backend, ours[2], chunk_rows=16, **transforms)
    got = linear_logprob(ours[0], ours[1], problem.targets, **settings)
    want = naive_logprobs(theirs[0], theirs[1], problem.targets, bias=theirs[2], **transforms)
    torch.autograd.backward(got, tuple(upstream))
    torch.autograd.backward(want, tuple(upstream))
    torch.testing.assert_close(tuple(got), want, rtol=1e-10, atol=1e-12)
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x.grad, y.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", COEFFICIENTS)
def test_linear_policy_loss_coefficients_follow_the_table(name, backend):
    problem = make_problem(50, 11, 37)
    out = linear_policy_loss(
        *problem[:2],
        problem.targets,
        problem.advantages,
        objective=OBJECTIVES[name][0],
        **settings_of(backend, problem.bias, chunk_rows=16, skip_rows=False),
        **inputs_of(problem),
    )
    lp, entropy = naive_logprobs(problem.hidden, problem.weight, problem.targets, bias=problem.bias)
    want = COEFFICIENTS[name](lp.exp(), problem.advantages, (lp - problem.old_logprobs).exp(), problem.ref_logprobs)
    valid = problem.targets != -100
    torch.testing.assert_close(out.coefficients, want * valid, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close((out.logprobs, out.entropy), (lp, entropy), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(out.stats["nll"], -lp[valid].mean())
    torch.testing.assert_close(out.stats["entropy"], entropy[valid].mean())


def test_linear_policy_loss_stats_report_the_rectification():
    problem = make_problem(50, 11, 37)._replace(advantages=torch.ones(50).double())
    out = linear_policy_loss(
        *problem[:2],
        problem.targets,
        problem.advantages,
        objective=gft(0.7) + kl(0.1),
        ref_logprobs=problem.ref_logprobs,
    )
    valid = problem.targets != -100
    p = naive_logprobs(problem.hidden, problem.weight, problem.targets)[0][valid].exp()
    delta = problem.ref_logprobs[valid] - p.log()
    torch.testing.assert_close(out.stats["mean_c"], torch.where(p < 0.7, p, 1.0).mean())
    torch.testing.assert_close(out.stats["rectified_fraction"], (p < 0.7).double().mean())
    torch.testing.assert_close(out.stats["kl"], (delta.exp() - delta - 1).mean())
    assert out.stats["tokens"] == out.stats["active_tokens"] == valid.sum()


DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("weight_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("hidden_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", ["chunked", "triton"])
def test_linear_policy_loss_gradient_has_the_parameters_dtype(backend, hidden_dtype, weight_dtype):
    problem = make_problem(50, 33, 257, dtype=torch.float32)
    problem = problem._replace(hidden=problem.hidden.to(hidden_dtype), weight=problem.weight.to(weight_dtype))
    weights = (problem.targets != -100).float()
    got = fused(
        problem, objective=sft(), token_weights=weights, backend=backend
    )  # sums: fp16 stays in its normal range
    want = naive(problem, OBJECTIVES["sft"][1], problem.targets != -100)
    assert (got.loss.dtype, got.hidden.dtype, got.weight.dtype, got.bias.dtype) == (
        torch.float32,
        hidden_dtype,
        weight_dtype,
        torch.float32,
    )
    assert_accurate(got.hidden, want.hidden)
    assert_accurate(got.weight, want.weight)
    operands = (
        torch.promote_types(hidden_dtype, weight_dtype) if backend == "triton" else None
    )  # it holds logit gradients in that dtype
    assert_accurate(got.bias, want.bias, operands)
    assert (got.logprobs - want.logprobs).abs().max() <= 2e-5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_linear_policy_loss_ignores_autocast(dtype, backend):
    problem = make_problem(50, 33, 257, dtype=dtype)
    plain = fused(problem, backend=backend)
    inside = fused(problem, backend=backend, around_forward=torch.autocast("cpu", torch.bfloat16))
    for name, x, y in zip(plain._fields, plain, inside, strict=True):
        assert torch.equal(x, y), name


def test_linear_policy_loss_ignores_autocast_in_a_second_backward():
    problem = make_problem(50, 33, 257, dtype=torch.float32)
    hidden, weight = (x.clone().requires_grad_() for x in problem[:2])
    loss = linear_policy_loss(hidden, weight, problem.targets, problem.advantages).loss
    first = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        second = torch.autograd.grad(loss, (hidden, weight))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_linear_logprob_ignores_autocast(backend):
    problem = make_problem(50, 33, 257, dtype=torch.float32)
    plain = linear_logprob(*problem[:2], problem.targets, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        inside = linear_logprob(*problem[:2], problem.targets, backend=backend)
    assert torch.equal(plain.logprobs, inside.logprobs)
    assert torch.equal(plain.entropy, inside.entropy)


def spread_out(x: torch.Tensor) -> torch.Tensor:
    """x as every second column of a larger, NaN-filled base."""
    base = torch.full((*x.shape[:-1], 2 * x.shape[-1]), torch.nan if x.is_floating_point() else 10**6, dtype=x.dtype)
    base[..., ::2] = x
    return base[..., ::2]


@pytest.mark.parametrize("layout", [spread_out, lambda x: x.T.contiguous().T], ids=["strided", "transposed"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_linear_policy_loss_strides_change_nothing(backend, layout):
    problem = make_problem(50, 11, 37)
    want = naive(problem, OBJECTIVES["gft"][1])
    hidden, weight = (layout(x).requires_grad_() for x in problem[:2])
    targets, advantages, bias, weights = (
        spread_out(x)
        for x in (
            *problem[3:5],
            problem.bias,
            naive_weights("token-mean", problem.targets != -100, problem.sequence_ids),
        )
    )
    assert not hidden.is_contiguous()
    out = linear_policy_loss(
        hidden,
        weight,
        targets,
        advantages,
        token_weights=weights,
        head=Head(bias=bias),
        backend=Backend(backend, chunk_rows=16),
    )
    out.loss.backward()
    torch.testing.assert_close(
        (out.loss.detach(), hidden.grad, weight.grad), (want.loss, want.hidden, want.weight), rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_linear_policy_loss_expanded_inputs_sum_their_gradients(backend):
    problem = make_problem(50, 11, 37)
    row = problem.hidden[0].clone().requires_grad_()
    advantages = torch.tensor(0.5, dtype=torch.float64).expand(50)
    out = linear_policy_loss(
        row.expand(50, 11),
        problem.weight,
        problem.targets,
        advantages,
        token_weights=naive_weights("token-mean", problem.targets != -100, problem.sequence_ids),
        backend=Backend(backend, chunk_rows=16),
    )
    out.loss.backward()
    copied = problem._replace(
        hidden=problem.hidden[0].repeat(50, 1), bias=torch.zeros(37).double(), advantages=advantages
    )
    torch.testing.assert_close(row.grad, naive(copied, OBJECTIVES["gft"][1]).hidden.sum(0), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_linear_policy_loss_module_applies_its_reduction(reduction):
    problem = make_problem(50, 11, 37)
    module = LinearPolicyLoss(gft(0.1), reduction=reduction, max_length=40, backend=Backend(chunk_rows=16))
    got = module(*problem[:2], problem.targets, problem.advantages, sequence_ids=problem.sequence_ids).loss
    weights = naive_weights(reduction, problem.targets != -100, problem.sequence_ids)
    want = naive(problem._replace(bias=torch.zeros(37).double()), OBJECTIVES["gft-launcher"][1], weights).loss
    torch.testing.assert_close(got, want, rtol=3e-7, atol=0)  # the weights are fp32


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_linear_policy_loss_module_takes_the_sequences_of_group_rewards(reduction):
    problem = make_problem(50, 11, 37)
    ids = torch.where(problem.targets == -100, -1, problem.sequence_ids)  # any value is allowed at masked rows
    groups = GroupRewards(torch.tensor([1.0, 0, 0.5, 0.25, 1], dtype=torch.float64), torch.tensor([0, 0, 1, 1, 1]), ids)
    module = LinearPolicyLoss(gft(0.1), reduction=reduction, max_length=40)
    mean, std = 1.75 / 3, ((0.5 - 1.75 / 3) ** 2 + (0.25 - 1.75 / 3) ** 2 + (1 - 1.75 / 3) ** 2) ** 0.5 / 2**0.5
    by_sequence = [
        0.5 / (0.5**0.5 + 1e-6),
        -0.5 / (0.5**0.5 + 1e-6),
        *((r - mean) / (std + 1e-6) for r in (0.5, 0.25, 1)),
    ]
    exact = problem._replace(
        advantages=torch.tensor(by_sequence, dtype=torch.float64)[problem.sequence_ids], bias=torch.zeros(37).double()
    )
    weights = naive_weights(reduction, problem.targets != -100, problem.sequence_ids)
    want = naive(exact, OBJECTIVES["gft-launcher"][1], weights).loss
    torch.testing.assert_close(module(*problem[:2], problem.targets, groups).loss, want, rtol=3e-7, atol=0)
