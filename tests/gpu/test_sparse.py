"""Column-sparse gradients on a device: within their bound of fp64, the same bits twice, exact where
softmaxes are flat.
"""

from __future__ import annotations

import pytest
import torch

from benchmarks.inputs.synthetic import peaked
from gft_kernels import Backend, Sparse, gft, linear_logprob, linear_policy_loss

from .device import DEVICE, LIMIT, MARKS, make_problem, relative, sized

pytestmark = MARKS

SHAPE = (sized(2048, 48), sized(1024, 16), sized(50257, 499))


def run(op: str, hidden, weight, targets, advantages, sparsity: Sparse | None, backend: str = "triton"):
    """Gradients of hidden and weight, and the report."""
    hidden, weight = (x.detach().clone().requires_grad_() for x in (hidden, weight))
    reports = [{}]
    if sparsity is not None:
        sparsity = Sparse(sparsity.error, sparsity.eps, on_backward=reports.append)
    run = Backend(backend, chunk_rows=sized(512, 16), sparsity=sparsity)
    if op == "loss":
        out = linear_policy_loss(hidden, weight, targets, advantages, objective=gft(0.7), backend=run)
        reports.append(out.stats)
        out.loss.backward()
    else:
        (linear_logprob(hidden, weight, targets, backend=run).logprobs * advantages).mean().backward()
    return hidden.grad, weight.grad, reports[-1]


@pytest.mark.parametrize("op", ["loss", "logprob"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_sparse_gradients_are_within_their_bound(dtype, op):
    generator = torch.Generator(DEVICE).manual_seed(0)
    hidden, weight, targets = peaked(*SHAPE, generator)
    hidden, weight = hidden.to(dtype), weight.to(dtype)
    advantages = torch.randn(len(targets), generator=generator, device=DEVICE)
    sparsity = Sparse(error=sized(1e-3, 0.1))
    dh, dw, report = run(op, hidden, weight, targets, advantages, sparsity)
    again = run(op, hidden, weight, targets, advantages, sparsity)
    assert torch.equal(dh, again[0])
    assert torch.equal(dw, again[1])
    exact = run(op, hidden.double(), weight.double(), targets, advantages.double(), None, "eager")
    assert report["sparse_exact"] == 0
    assert report["sparse_columns"] < 0.5
    assert report["sparse_error"] <= sparsity.error
    for got, want in zip((dh, dw), exact, strict=False):
        assert relative(got, want) <= 4 * report["sparse_error"].item() + 2 * LIMIT[dtype]


def test_sparse_heads_take_the_exact_path_on_flat_logits():
    problem = make_problem(sized(1024, 48), sized(256, 16), sized(32000, 100), torch.bfloat16, masked=False)
    flat = problem.hidden * 0.01
    exact, found = (run("loss", flat, problem.weight, problem.targets, problem.advantages, s) for s in (None, Sparse()))
    assert found[2]["sparse_exact"] == 1
    assert torch.equal(found[0], exact[0])
    assert torch.equal(found[1], exact[1])
