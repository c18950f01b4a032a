"""Numerical failures reported against fused heads elsewhere, each shown to be absent here."""

from __future__ import annotations

import math

import pytest
import torch

from gft_kernels import Backend, Head, cispo, dft, gft, grpo, kl, linear_logprob, linear_policy_loss, reinforce, sft

from ..helpers.cases import BACKENDS, TRANSFORMS, inputs_of
from ..helpers.formulas import OBJECTIVES
from ..helpers.problems import RMS_LIMIT, fused, make_problem, naive, naive_logprobs, rms, settings_of

PROBLEM = make_problem(50, 11, 37)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("objective", [gft(), sft(), grpo(), gft() + kl()], ids=str)
@pytest.mark.parametrize("rows", [0, 5])
def test_linear_policy_loss_without_targets_is_zero_with_a_live_graph(rows, objective, backend):
    problem = make_problem(rows, 4, 7, dtype=torch.bfloat16)
    problem = problem._replace(targets=torch.full((rows,), -100))
    got = fused(problem, objective=objective, backend=backend, token_weights=None, **inputs_of(problem))
    assert got.loss == 0
    for gradient, x in zip(got[2:], problem[:3], strict=True):
        assert torch.equal(gradient, torch.zeros_like(x))
    assert torch.equal(got.logprobs, torch.zeros(rows))


@pytest.mark.parametrize("backend", BACKENDS)
def test_linear_policy_loss_without_spread_is_zero_with_a_live_graph(backend):
    problem = PROBLEM._replace(advantages=torch.zeros(50).double())
    got = fused(problem, backend=backend)
    assert got.loss == 0
    assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in got[2:])
    hidden = PROBLEM.hidden.clone().requires_grad_()
    skipped = linear_policy_loss(hidden, PROBLEM.weight, PROBLEM.targets, problem.advantages, backend=backend)
    skipped.loss.backward()
    assert torch.equal(hidden.grad, torch.zeros_like(hidden))
    counts = {name: skipped.stats[name].item() for name in ("active_tokens", "tokens")}
    assert counts == {"active_tokens": 0, "tokens": int((PROBLEM.targets >= 0).sum())}
    # A mean of no row is NaN: an entropy of 0 would look like a policy that has collapsed.
    assert all(value.isnan() for name, value in skipped.stats.items() if name not in counts)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", [0, 5])
def test_linear_logprob_without_targets_is_zero_with_a_live_graph(rows, backend):
    hidden, weight = (x.clone().requires_grad_() for x in make_problem(rows, 4, 7)[:2])
    out = linear_logprob(hidden, weight, torch.full((rows,), -100), backend=backend)
    assert torch.equal(torch.stack(out), torch.zeros(2, rows).double())
    (out.logprobs.sum() + out.entropy.sum()).backward()
    assert torch.equal(hidden.grad, torch.zeros_like(hidden))
    assert torch.equal(weight.grad, torch.zeros_like(weight))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["gft", "dapo", "gft+kl"])
def test_linear_policy_loss_banned_tokens_are_as_if_absent(name, backend):
    objective, formula = OBJECTIVES[name]
    banned = torch.arange(37) % 5 == 2
    kept = torch.arange(37)[~banned]
    targets = torch.where(PROBLEM.targets == -100, -100, kept[PROBLEM.targets.clamp(min=0) % len(kept)])
    problem = PROBLEM._replace(targets=targets, bias=PROBLEM.bias.masked_fill(banned, -torch.inf))
    small = PROBLEM._replace(
        weight=PROBLEM.weight[kept],
        bias=PROBLEM.bias[kept],
        targets=torch.where(targets == -100, -100, targets - (targets + 2) // 5),
    )
    got, want = fused(problem, objective=objective, backend=backend, **inputs_of(problem)), naive(small, formula)
    torch.testing.assert_close((got.loss, got.logprobs, got.hidden), tuple(want[:3]), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close((got.weight[kept], got.bias[kept]), (want.weight, want.bias), rtol=1e-10, atol=1e-12)
    assert torch.equal(got.bias[banned], torch.zeros(int(banned.sum())).double())
    assert torch.equal(got.weight[banned], torch.zeros(int(banned.sum()), 11).double())


@pytest.mark.parametrize("backend", BACKENDS)
def test_linear_logprob_banned_tokens_leave_the_entropy_finite(backend):
    banned = torch.arange(37) % 5 == 2
    bias = PROBLEM.bias.masked_fill(banned, -torch.inf).requires_grad_()
    hidden = PROBLEM.hidden.clone().requires_grad_()
    out = linear_logprob(
        hidden,
        PROBLEM.weight,
        torch.zeros(50, dtype=torch.long),
        head=Head(bias=bias),
        backend=Backend(backend, chunk_rows=16),
    )
    out.entropy.sum().backward()
    leaf = PROBLEM.hidden.clone().requires_grad_()
    _, want = naive_logprobs(
        leaf, PROBLEM.weight[~banned], torch.zeros(50, dtype=torch.long), bias=PROBLEM.bias[~banned]
    )
    want.sum().backward()
    torch.testing.assert_close((out.entropy, hidden.grad), (want, leaf.grad), rtol=1e-10, atol=1e-12)
    assert torch.equal(bias.grad[banned], torch.zeros(int(banned.sum())).double())


IMPOSSIBLE = {  # the target's logit below the others'
    "p underflows": -200.0,  # p = 0 in fp32, log p = -200
    "far": -3e4,
    "never": -math.inf,
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("drop", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_linear_policy_loss_impossible_target_costs_nothing(drop, backend):
    problem = make_problem(20, 4, 9, dtype=torch.float32, masked=0)
    problem = problem._replace(
        targets=torch.full((20,), 3),
        bias=torch.zeros(9).index_fill(0, torch.tensor(3), drop),
        advantages=torch.linspace(-2, 2, 20),
    )
    for objective in (gft(0.7), dft()):
        got = fused(problem, objective=objective, backend=backend)
        assert got.loss == 0
        assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in got[2:])
        want, _ = naive_logprobs(
            problem.hidden.double(), problem.weight.double(), problem.targets, bias=problem.bias.double()
        )
        torch.testing.assert_close(got.logprobs.double(), want, rtol=1e-6, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("drop", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
@pytest.mark.parametrize("objective", [sft(), reinforce(), grpo(), cispo(), sft() + kl()], ids=str)
def test_linear_policy_loss_impossible_target_makes_no_nan(objective, drop, backend):
    problem = make_problem(20, 4, 9, dtype=torch.float32, masked=0)
    problem = problem._replace(
        targets=torch.full((20,), 3),
        bias=torch.zeros(9).index_fill(0, torch.tensor(3), drop),
        advantages=torch.linspace(0.1, 2, 20),
    )
    got = fused(
        problem,
        objective=objective,
        backend=backend,
        old_logprobs=torch.full((20,), -5.0),
        ref_logprobs=torch.full((20,), drop),
    )
    assert not any(x.isnan().any() for x in got)
    assert all(gradient.isfinite().all() for gradient in got[2:])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("drop", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_entropy_ignores_an_impossible_target(drop, backend):
    problem = make_problem(20, 4, 9, dtype=torch.float32, masked=0)
    targets, bias = torch.full((20,), 3), torch.zeros(9).index_fill(0, torch.tensor(3), drop)
    hidden = problem.hidden.clone().requires_grad_()
    others = torch.arange(9) != 3
    log_p = (problem.hidden.double() @ problem.weight[others].double().T).log_softmax(-1)
    want = -(log_p.exp() * log_p).sum(1)
    settings = settings_of(backend, bias, chunk_rows=8)
    fused_entropy = linear_policy_loss(hidden, problem.weight, targets, objective=dft(), **settings).entropy
    for entropy in (fused_entropy, linear_logprob(hidden, problem.weight, targets, **settings).entropy):
        torch.testing.assert_close(entropy.double(), want, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("offset", [0.0, 1e2, 1e4])
def test_entropy_error_stays_below_a_millionth_of_the_logits(offset):
    problem = make_problem(50, 64, 501, dtype=torch.float32)
    bias = problem.bias + offset
    _, want = naive_logprobs(problem.hidden.double(), problem.weight.double(), problem.targets, bias=bias.double())
    settings = settings_of("auto", bias, chunk_rows=16, skip_rows=False)
    from_product = linear_policy_loss(
        problem.hidden.requires_grad_(), problem.weight, problem.targets, objective=sft(), **settings
    ).entropy
    from_logits = linear_logprob(problem.hidden, problem.weight, problem.targets, **settings).entropy
    assert (from_product - want).abs().max() <= 1e-6 * (5 + offset)
    assert (from_logits - want).abs().max() <= 1e-6 * (2 + offset / 16)


UPSTREAM = {
    "random": lambda n: torch.randn(n).double(),
    "half zero": lambda n: torch.randn(n).double() * (torch.arange(n) % 2),
    "zero": lambda n: torch.zeros(n).double(),
    "negative": lambda n: -torch.rand(n).double(),
    "strided": lambda n: torch.randn(n, 3).double()[:, 1],
    "expanded": lambda n: torch.tensor(-0.75).double().expand(n),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("output", [0, 1], ids=["logprobs", "entropy"])
@pytest.mark.parametrize("upstream", UPSTREAM.values(), ids=UPSTREAM)
def test_linear_logprob_takes_any_upstream_gradient(upstream, output, backend):
    grad_output = upstream(150)
    problem = make_problem(150, 5, 120)  # V is above 100, where -100 would be a legal index from the end
    ours, theirs = ([x.clone().requires_grad_() for x in problem[:3]] for _ in range(2))
    got = linear_logprob(*ours[:2], problem.targets, **settings_of(backend, ours[2], chunk_rows=40))[output]
    want = naive_logprobs(*theirs[:2], problem.targets, bias=theirs[2])[output]
    got.backward(grad_output)
    want.backward(grad_output)
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x.grad, y.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("backend", "rows"), [("chunked", 512), ("triton", 64)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_linear_policy_loss_weight_gradient_is_as_good_in_64_chunks_as_in_one(dtype, backend, rows):
    problem = make_problem(rows, 16, 64, dtype=dtype, masked=0)
    want = naive(problem, OBJECTIVES["sft"][1]).weight
    runs = (fused(problem, objective=sft(), chunk_rows=rows // chunks, backend=backend) for chunks in (1, 8, 64))
    errors = [rms(run.weight.double() - want) for run in runs]
    assert max(errors) <= 1.01 * errors[0]
    assert max(errors) <= RMS_LIMIT[dtype] * rms(want)


@pytest.mark.parametrize("backend", ["chunked", "triton"])
@pytest.mark.parametrize("p", [0.5, 0.9, 0.99, 0.999, 0.99999])
def test_linear_policy_loss_confident_rows_keep_their_gradient(p, backend):
    # One hidden unit of 1: the weight column is the row of logits, the bias gradient is the row of
    # logit gradients. Eager PyTorch is no match here: its softmax minus one has an error of 7% at p
    # = .99999.
    vocabulary = 1000
    weight = torch.zeros(vocabulary, 1)
    weight[7] = math.log(p / (1 - p) * (vocabulary - 1))
    bias = torch.zeros(vocabulary, requires_grad=True)
    head = Head(bias=bias)
    linear_policy_loss(
        torch.ones(1, 1), weight, torch.tensor([7]), objective=sft(), head=head, backend=backend
    ).loss.backward()
    others = (vocabulary - 1) * torch.exp(-weight[7, 0].double())
    want = -others / (1 + others)  # -(1 - p)
    assert abs(bias.grad[7] / want - 1) <= 1e-5


@pytest.mark.parametrize("backend", ["chunked", "triton"])
def test_linear_policy_loss_keeps_tiny_fp16_gradients(backend):
    problem = make_problem(50, 11, 37, dtype=torch.float16)
    scale, tiny = 65536.0, torch.full((50,), 1e-7)  # most of d loss / d hidden is below fp16's smallest number
    want = naive(problem, OBJECTIVES["sft"][1], tiny * (problem.targets != -100))
    hidden, weight = (x.clone().requires_grad_() for x in problem[:2])
    settings = settings_of(backend, problem.bias, chunk_rows=16)
    loss = linear_policy_loss(hidden, weight, problem.targets, objective=sft(), token_weights=tiny, **settings).loss
    (scale * loss).backward()
    assert want.hidden.abs().median() < 2**-24
    for got, exact in ((hidden.grad, want.hidden), (weight.grad, want.weight)):
        assert rms(got.double() / scale - exact) <= RMS_LIMIT[torch.float16] * rms(exact)


@pytest.mark.parametrize("backend", ["chunked", "triton"])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_linear_policy_loss_logprobs_never_exceed_zero(transform, backend):
    problem = make_problem(70, 7, 129, dtype=torch.bfloat16)._replace(targets=torch.arange(70))
    problem = problem._replace(hidden=problem.hidden * 30)
    assert (fused(problem, transforms=TRANSFORMS[transform], backend=backend).logprobs <= 0).all()
