"""Limits of the method and symmetries of the head: exact where arithmetic allows."""

from __future__ import annotations

import math

import pytest
import torch

from gft_kernels import Backend, dft, gft, grpo, linear_policy_loss, reinforce, sft

from ..helpers.problems import Result, assert_equal_results, fused, make_problem
from .test_parity import BACKENDS

PROBLEM = make_problem(50, 11, 37)
ONES = torch.ones(50).double()


def assert_same_bits(got: Result, want: Result) -> None:
    for name, x, y in zip(Result._fields, got, want, strict=True):
        assert torch.equal(x, y), name


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("objective", "limit", "advantages"),
    [
        (gft(0.0), sft(), ONES),
        (gft(-1.0), sft(), ONES),
        (gft(1.0), dft(), ONES),
        (gft(1.5), dft(), ONES),
        (gft(0.0), reinforce(), PROBLEM.advantages),
    ],
    ids=str,
)
def test_gft_limits_are_other_objectives(objective, limit, advantages, backend):
    got, want = (fused(PROBLEM, objective=o, advantages=advantages, backend=backend) for o in (objective, limit))
    assert_same_bits(got, want)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_gft_at_tau_is_not_rectified(dtype, backend):
    # Two equal logits: p is exactly one half in either dtype.
    hidden, weight, targets = torch.zeros(3, 2, dtype=dtype), torch.ones(2, 2, dtype=dtype), torch.tensor([0, 1, 0])
    advantages = torch.tensor([1.0, -2.0, 4.0], dtype=dtype)
    p = linear_policy_loss(hidden, weight, targets, advantages, objective=sft(), backend=backend).logprobs.exp()
    assert torch.equal(p, torch.full((3,), 0.5, dtype=dtype))
    at = linear_policy_loss(hidden, weight, targets, advantages, objective=gft(0.5), backend=backend)
    above = linear_policy_loss(hidden, weight, targets, advantages, objective=gft(0.5000001), backend=backend)
    assert torch.equal(at.coefficients, -advantages)
    assert torch.equal(above.coefficients, -advantages / 2)
    assert at.stats["rectified_fraction"] == 0
    assert above.stats["rectified_fraction"] == 1


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("given", [True, False], ids=["old given", "old left out"])
def test_grpo_on_policy_has_coefficient_minus_advantage(given, backend):
    run = Backend(backend, chunk_rows=16, skip_rows=False)
    common = {"advantages": PROBLEM.advantages, "backend": run}
    current = linear_policy_loss(*PROBLEM[:2], PROBLEM.targets, objective=reinforce(), **common).logprobs
    out = linear_policy_loss(
        *PROBLEM[:2], PROBLEM.targets, objective=grpo(), old_logprobs=current if given else None, **common
    )
    assert torch.equal(out.coefficients, torch.where(PROBLEM.targets == -100, 0, -PROBLEM.advantages))


@pytest.mark.parametrize("backend", BACKENDS)
def test_linear_policy_loss_is_odd_and_homogeneous_in_the_advantage(backend):
    plus, minus, double = (fused(PROBLEM, advantages=k * PROBLEM.advantages, backend=backend) for k in (1, -1, 2))
    assert_same_bits(
        minus, plus._replace(**{name: -getattr(plus, name) for name in ("loss", "hidden", "weight", "bias")})
    )
    assert_same_bits(
        double, plus._replace(**{name: 2 * getattr(plus, name) for name in ("loss", "hidden", "weight", "bias")})
    )


def test_linear_policy_loss_is_additive_in_the_advantage():
    other = torch.randn(50).double()
    a, b, both = (fused(PROBLEM, advantages=x) for x in (PROBLEM.advantages, other, PROBLEM.advantages + other))
    summed = {name: getattr(a, name) + getattr(b, name) for name in ("loss", "hidden", "weight", "bias")}
    assert_equal_results(both, a._replace(**summed))


@pytest.mark.parametrize("backend", ["chunked", "triton"])
def test_linear_policy_loss_permuted_tokens_permute_the_result(backend):
    order = torch.randperm(50)
    shuffled = PROBLEM._replace(**{name: getattr(PROBLEM, name)[order] for name in ("hidden", "targets", "advantages")})
    want = fused(PROBLEM, backend=backend)
    assert_equal_results(
        fused(shuffled, backend=backend), want._replace(logprobs=want.logprobs[order], hidden=want.hidden[order])
    )


@pytest.mark.parametrize("backend", ["chunked", "triton"])
def test_linear_policy_loss_permuted_vocabulary_permutes_the_result(backend):
    order = torch.randperm(37)
    renamed = torch.where(PROBLEM.targets == -100, -100, order.argsort()[PROBLEM.targets.clamp(min=0)])
    want = fused(PROBLEM, backend=backend)
    got = fused(
        PROBLEM._replace(weight=PROBLEM.weight[order], bias=PROBLEM.bias[order], targets=renamed), backend=backend
    )
    assert_equal_results(got, want._replace(weight=want.weight[order], bias=want.bias[order]))


@pytest.mark.parametrize("backend", ["chunked", "triton"])
@pytest.mark.parametrize("transforms", [{}, {"scale": 2.0, "temperature": 0.5}], ids=str)
def test_linear_policy_loss_logit_gradients_sum_to_zero(transforms, backend):
    problem = make_problem(50, 11, 1001, dtype=torch.float32, masked=0)
    for row in (0, 1, 2):  # a uniform target, a drawn one, a confident one
        one = problem._replace(
            **{name: getattr(problem, name)[row : row + 1] for name in ("hidden", "targets", "advantages")}
        )
        dlogits = fused(
            one, objective=sft(), transforms=transforms, backend=backend
        ).bias.double()  # of a single row: the bias gradient
        assert dlogits.abs().sum() > 1e-3
        assert dlogits.sum().abs() <= 1e-7 * dlogits.abs().sum()


def test_linear_policy_loss_common_offset_leaves_no_bit_changed():
    # Multiples of 1/4 make every logit a multiple of 1/16: exact in fp32, with or without 8192 on
    # top.
    problem = make_problem(50, 4, 37, dtype=torch.float32)
    quarter = problem._replace(
        **{name: (getattr(problem, name) * 4).round() / 4 for name in ("hidden", "weight", "bias")}
    )
    for backend in BACKENDS:
        want = fused(quarter, backend=backend)
        assert_same_bits(fused(quarter._replace(bias=quarter.bias + 8192), backend=backend), want)


@pytest.mark.parametrize("offset", [-1e4, 1e4])
@pytest.mark.parametrize("backend", BACKENDS)
def test_linear_policy_loss_is_shift_invariant(backend, offset):
    assert_equal_results(
        fused(PROBLEM._replace(bias=PROBLEM.bias + offset), backend=backend), fused(PROBLEM, backend=backend)
    )


@pytest.mark.parametrize("backend", ["chunked", "triton"])
@pytest.mark.parametrize("transforms", [{}, {"softcap": 3.0}], ids=str)
def test_linear_policy_loss_chunks_change_nothing(transforms, backend):
    want = fused(PROBLEM, chunk_rows=128, transforms=transforms, backend=backend)  # one chunk
    for chunk_rows in (1, 3, 16):
        assert_equal_results(fused(PROBLEM, chunk_rows=chunk_rows, transforms=transforms, backend=backend), want)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_linear_policy_loss_bad_row_leaves_the_others_alone(value):
    bad = PROBLEM.hidden.clone()
    row = int((PROBLEM.targets != -100).nonzero()[5])
    bad[row] = value
    want, got = fused(PROBLEM), fused(PROBLEM._replace(hidden=bad))
    others = torch.arange(50) != row
    assert got.logprobs[row].isnan()
    assert torch.equal(got.logprobs[others], want.logprobs[others])
    assert torch.equal(got.hidden[others], want.hidden[others])
    assert got.loss.isnan()


@pytest.mark.parametrize("backend", ["chunked", "triton"])
def test_linear_policy_loss_bad_masked_row_is_never_read(backend):
    row = int((PROBLEM.targets == -100).nonzero()[2])
    bad = PROBLEM.hidden.clone()
    bad[row] = math.nan
    assert_same_bits(fused(PROBLEM._replace(hidden=bad), backend=backend), fused(PROBLEM, backend=backend))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_linear_policy_loss_ten_runs_have_equal_bits(dtype):
    problem = make_problem(200, 64, 501, dtype=dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(2)  # sums split over threads must be split the same way
    runs = [fused(problem, chunk_rows=60) for _ in range(10)]
    torch.set_num_threads(before)
    for got in runs[1:]:
        assert_same_bits(got, runs[0])
