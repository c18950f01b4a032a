"""How the ops behave inside a training program: memory, what is frozen, repeated backward passes,
tied weights, compile.
"""

from __future__ import annotations

import pytest
import torch

from gft_kernels import Backend, Head, linear_logprob, linear_policy_loss, sft

from ..helpers.problems import Problem, fused, make_problem, naive_logprobs, settings_of
from ..helpers.recorder import Recorder
from .test_parity import BACKENDS

PROBLEM = make_problem(50, 11, 37)


def loss_of(hidden, weight, problem: Problem = PROBLEM, **options):
    settings = settings_of(options.pop("backend", "auto"), chunk_rows=16, **options.pop("head", {}))
    return linear_policy_loss(hidden, weight, problem.targets, problem.advantages, **settings, **options).loss


def leaves(problem: Problem = PROBLEM, hidden: bool = True, weight: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    return problem.hidden.clone().requires_grad_(hidden), problem.weight.clone().requires_grad_(weight)


WIDE = make_problem(128, 8, 300, dtype=torch.float32)  # V * D and N * D stay far below N * V


def record_policy_loss(backend: str = "chunked", softcap: float | None = None, **wanted) -> Recorder:
    hidden, weight = leaves(WIDE, **wanted)
    with Recorder() as recorder:
        loss_of(hidden, weight, WIDE, backend=backend, head={"softcap": softcap}).backward()
    return recorder


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_linear_policy_loss_holds_no_full_logits(softcap):
    assert (
        record_policy_loss("eager", softcap).largest() >= 128 * 300
    )  # the recorder sees the logits where there are some
    assert record_policy_loss("chunked", softcap).largest() <= max(16 * 300, 300 * 8)


def test_linear_logprob_holds_no_full_logits():
    hidden, weight = leaves(WIDE)
    with Recorder() as recorder:
        out = linear_logprob(hidden, weight, WIDE.targets, backend=Backend(chunk_rows=16))
        (out.logprobs.sum() + out.entropy.sum()).backward()
    assert recorder.largest() <= max(16 * 300, 300 * 8)


@pytest.mark.parametrize(("softcap", "buffers"), [(None, 1), (2.0, 2)])
def test_linear_policy_loss_holds_the_chunks_it_names(softcap, buffers):
    shapes = record_policy_loss("chunked", softcap).shapes
    assert [shape for shape in shapes if torch.Size(shape).numel() == 16 * 300] == [(16, 300)] * buffers


def test_linear_logprob_forward_holds_two_chunks():
    with Recorder() as recorder, torch.no_grad():
        linear_logprob(
            torch.randn(128, 8), torch.randn(300, 8), torch.randint(0, 300, (128,)), backend=Backend(chunk_rows=16)
        )
    assert [shape for shape in recorder.shapes if torch.Size(shape).numel() == 16 * 300] == [(16, 300)] * 2


def test_linear_policy_loss_frozen_weight_costs_no_gradient_memory_and_no_product():
    trained, frozen = record_policy_loss(), record_policy_loss(weight=False)
    assert trained.shapes.count((300, 8)) == 1
    assert (300, 8) in trained.products
    assert (300, 8) not in frozen.shapes
    assert (300, 8) not in frozen.products


def test_linear_policy_loss_frozen_hidden_costs_no_product():
    trained, frozen = record_policy_loss(), record_policy_loss(hidden=False)
    assert (16, 8) in trained.products
    assert (16, 8) not in frozen.products


def test_linear_policy_loss_skipped_rows_cost_no_product():
    few = WIDE._replace(targets=torch.where(torch.arange(128) < 7, 3, -100), advantages=torch.ones(128))
    hidden, weight = leaves(few)
    with Recorder() as recorder:
        loss_of(hidden, weight, few).backward()
    assert recorder.largest() <= 300 * 8
    assert (7, 300) in recorder.products


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("frozen", ["hidden", "weight", "bias"])
def test_linear_policy_loss_frozen_input_leaves_other_gradients(frozen, backend):
    want = fused(PROBLEM)
    inputs = {
        name: getattr(PROBLEM, name).clone().requires_grad_(name != frozen) for name in ("hidden", "weight", "bias")
    }
    loss = linear_policy_loss(
        inputs["hidden"],
        inputs["weight"],
        PROBLEM.targets,
        PROBLEM.advantages,
        backend=Backend(backend, chunk_rows=16),
        token_weights=(PROBLEM.targets != -100).double() / (PROBLEM.targets != -100).sum(),
        head=Head(bias=inputs["bias"]),
    ).loss
    loss.backward()
    assert inputs.pop(frozen).grad is None
    for name, x in inputs.items():
        torch.testing.assert_close(x.grad, getattr(want, name), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
def test_ops_without_grad_give_the_same_numbers(backend):
    hidden, weight = leaves()
    with torch.no_grad():
        quiet = linear_policy_loss(hidden, weight, PROBLEM.targets, PROBLEM.advantages, backend=backend)
        quiet_logprobs = linear_logprob(hidden, weight, PROBLEM.targets, backend=backend)
    assert not quiet.loss.requires_grad
    assert not quiet_logprobs.logprobs.requires_grad
    loud = linear_policy_loss(hidden, weight, PROBLEM.targets, PROBLEM.advantages, backend=backend)
    torch.testing.assert_close(
        tuple(quiet[:4]), tuple(x.detach() for x in loud[:4]), rtol=1e-12, atol=1e-12, equal_nan=True
    )
    assert loud.loss.requires_grad
    assert not any(x.requires_grad for x in (*loud[1:4], *loud.stats.values()))


def test_linear_policy_loss_without_grad_allocates_no_gradients():
    hidden, weight = leaves(WIDE)
    with Recorder() as recorder, torch.no_grad():
        loss_of(hidden, weight, WIDE)
    assert (300, 8) not in recorder.shapes
    assert (128, 8) not in recorder.shapes


@pytest.mark.parametrize("upstream", [0.0, -2.5, 65536.0])
@pytest.mark.parametrize("backend", BACKENDS)
def test_linear_policy_loss_scales_with_the_upstream_gradient(upstream, backend):
    once, scaled = leaves(), leaves()
    loss_of(*once, backend=backend).backward()
    (loss_of(*scaled, backend=backend) * upstream).backward()
    for x, y in zip(scaled, once, strict=True):
        torch.testing.assert_close(x.grad, upstream * y.grad, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("backend", BACKENDS)
def test_linear_policy_loss_second_backward_is_right_and_keeps_the_first(backend):
    hidden, weight = leaves()
    want = torch.autograd.grad(loss_of(hidden, weight, backend="eager"), (hidden, weight))
    loss = loss_of(hidden, weight, backend=backend)
    first = torch.autograd.grad(loss, (hidden, weight), torch.tensor(3.0).double(), retain_graph=True)
    kept = [x.clone() for x in first]
    second = torch.autograd.grad(loss, (hidden, weight), torch.tensor(-0.5).double(), retain_graph=True)
    (only_weight,) = torch.autograd.grad(loss, weight)
    for a, a_before, b, x in zip(first, kept, second, want, strict=True):
        assert torch.equal(a, a_before)
        torch.testing.assert_close((a, b), (3 * x, -0.5 * x), rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(only_weight, want[1], rtol=1e-10, atol=1e-13)


def test_linear_logprob_second_backward_is_right_and_keeps_the_first():
    hidden, weight = leaves()
    out = linear_logprob(hidden, weight, PROBLEM.targets, backend=Backend(chunk_rows=16))
    want, _ = naive_logprobs(hidden, weight, PROBLEM.targets)
    upstreams = [torch.randn(50).double() for _ in range(2)]
    first, second = (torch.autograd.grad(out.logprobs, (hidden, weight), g, retain_graph=True) for g in upstreams)
    for got, upstream in ((first, upstreams[0]), (second, upstreams[1])):
        expected = torch.autograd.grad(want, (hidden, weight), upstream, retain_graph=True)
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-13)


def penalise_gradient(value: torch.Tensor, hidden: torch.Tensor) -> None:
    (gradient,) = torch.autograd.grad(value, hidden, create_graph=True)
    (value + gradient.square().sum()).backward()


@pytest.mark.parametrize("after", [lambda x: x, torch.square], ids=["linear", "square"])
@pytest.mark.parametrize("op", ["loss", "logprobs"])
def test_double_backward_is_refused(op, after):
    # A gradient penalty must not be dropped in silence, whether or not the upstream gradient itself
    # has a graph.
    hidden, weight = leaves()
    value = after(
        loss_of(hidden, weight) if op == "loss" else linear_logprob(hidden, weight, PROBLEM.targets).logprobs.sum()
    )
    with pytest.raises(RuntimeError, match="differentia"):
        penalise_gradient(value, hidden)


@pytest.mark.parametrize("backend", BACKENDS)
def test_tied_weight_gets_the_gradient_of_both_paths(backend):
    tokens, mix = torch.randint(37, (50,)), torch.randn(11, 11).double()
    tied, embedding, head = (PROBLEM.weight.clone().requires_grad_() for _ in range(3))
    loss_of(torch.tanh(tied[tokens] @ mix), tied, backend=backend).backward()
    lp, _ = naive_logprobs(torch.tanh(embedding[tokens] @ mix), head, PROBLEM.targets)
    p, valid = lp.detach().exp(), PROBLEM.targets != -100
    (-(PROBLEM.advantages * torch.where(p < 0.7, p, 1.0) * lp)[valid].mean()).backward()
    torch.testing.assert_close(
        tied.grad, embedding.grad + head.grad, rtol=2e-7, atol=1e-9
    )  # 1/N of the default mean is fp32
    assert embedding.grad.abs().max() > 1e-3 < head.grad.abs().max()


def test_linear_policy_loss_learns():
    hidden, weight = leaves()
    optimiser = torch.optim.SGD([hidden, weight], lr=2.0)
    losses = []
    for _ in range(30):
        optimiser.zero_grad()
        loss = loss_of(hidden, weight, objective=sft())
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
