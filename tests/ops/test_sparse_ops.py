"""Column-sparse gradients in the ops: dtypes, autograd, what does not change, compiled programs."""

from __future__ import annotations

import pytest
import torch

from gft_kernels import Backend, Sparse, linear_logprob, linear_policy_loss, logits_policy_loss

from ..engines.test_sparse import BACKENDS, gradients, peaked
from ..helpers.problems import settings_of


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("op", ["loss", "logprob"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_engines_agree_with_fp64(backend, op, dtype):
    hidden, weight, targets, advantages = peaked(72, 16, 700, sharpness=9.0, dtype=dtype)
    reports: list[dict] = []
    sparsity = Sparse(eps=2.0**-9, on_backward=reports.append)
    targets[5] = -100

    def run(scale, sparsity, backend, hidden, weight):
        hidden, weight, bias = (
            x.clone().requires_grad_() for x in (hidden, weight, torch.zeros(700, dtype=hidden.dtype))
        )
        settings = settings_of(backend, bias, sparsity=sparsity, chunk_rows=32)
        if op == "loss":
            out = linear_policy_loss(hidden, weight, targets, advantages, **settings)
            reports.append(out.stats)
            (out.loss * scale).backward()
        else:
            logprobs = linear_logprob(hidden, weight, targets, **settings).logprobs
            (logprobs * advantages * scale).sum().backward()
        return hidden.grad, weight.grad, bias.grad

    exact = run(3.0, None, "eager", hidden.double(), weight.double())
    found = run(3.0, sparsity, backend, hidden, weight)
    report = reports[-1]
    assert report["sparse_exact"] == 0
    assert report["sparse_columns"] < 0.4
    limit = 4 * report["sparse_error"] + {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 8e-3}[dtype]
    assert 1e-3 < report["sparse_error"] < 3e-2
    for got, want in zip(found, exact, strict=True):
        assert (got.double() - want).norm() <= limit * want.norm()


def test_gradients_of_an_entropy_are_exact():
    hidden, weight, targets, _ = peaked(20, 8, 90)
    results = []
    for sparsity in (None, Sparse(eps=0.1)):
        h = hidden.clone().requires_grad_()
        scores = linear_logprob(h, weight, targets, backend=Backend("chunked", sparsity=sparsity))
        (scores.logprobs.sum() + 0.1 * scores.entropy.sum()).backward()
        results.append(h.grad)
    assert torch.equal(*results)


def test_losses_metrics_and_a_frozen_head_do_not_notice():
    hidden, weight, targets, advantages = peaked(40, 9, 300, sharpness=12.0)
    exact, found = (
        linear_policy_loss(hidden.requires_grad_(), weight, targets, advantages, backend=Backend("chunked", sparsity=s))
        for s in (None, Sparse(eps=2.0**-6))
    )
    assert found.stats["sparse_columns"] < 0.5
    torch.testing.assert_close(found.entropy, exact.entropy, rtol=1e-12, atol=1e-12)
    assert torch.equal(found.loss, exact.loss)
    assert torch.equal(found.logprobs, exact.logprobs)
    found.loss.backward()
    assert weight.grad is None


def test_rows_without_weight_and_masked_batches():
    hidden, weight, targets, advantages = peaked(40, 9, 300, sharpness=12.0)
    for rows in ((targets.fill_(-100), advantages), (targets.clone().fill_(3), torch.zeros_like(advantages))):
        dh, dw, stats = gradients((hidden, weight, *rows), Sparse(), skip_rows=False)
        assert not dh.any()
        assert not dw.any()
        assert stats["sparse_error"] == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_that_is_nan_stays_nan_and_alone(backend):
    problem = peaked(40, 9, 300, sharpness=12.0)
    problem[0][7] = torch.nan
    dh, _, stats = gradients(problem, Sparse(), backend, chunk_rows=16)
    assert dh[7].isnan().all()
    assert dh[:7].isfinite().all()
    assert dh[8:].isfinite().all()
    assert 0 < stats["sparse_exact"] < 1


@pytest.mark.parametrize("sparsity", [Sparse(), Sparse(eps=2.0**-9)], ids=("error", "eps"))
def test_what_is_kept_does_not_depend_on_the_scale_of_the_loss(sparsity):
    hidden, weight, targets, advantages = peaked(64, 9, 300, sharpness=12.0, dtype=torch.float32)
    plain = gradients((hidden, weight, targets, advantages), sparsity, chunk_rows=16)
    tiny = gradients(
        (hidden, weight, targets, advantages * 2.0**-80), sparsity, chunk_rows=16
    )  # their squares underflow
    assert plain[2]["sparse_columns"] < 0.5
    for name in ("sparse_columns", "sparse_exact", "sparse_error"):
        torch.testing.assert_close(tiny[2][name], plain[2][name])
    for got, want in zip(tiny[:2], plain[:2], strict=True):
        torch.testing.assert_close(got * 2.0**80, want)


def test_ten_runs_have_the_same_bits():
    problem = peaked(64, 9, 300, sharpness=12.0, dtype=torch.float32)
    first, *others = (gradients(problem, Sparse(), chunk_rows=16)[:2] for _ in range(10))
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))


def test_many_chunks_flush_their_tails(monkeypatch):
    problem = peaked(90, 9, 200, sharpness=9.0)
    whole = gradients(problem, Sparse(eps=2.0**-7), chunk_rows=8)
    monkeypatch.setattr("gft_kernels.engines.sparse.TAILS", 3)
    for got, want in zip(gradients(problem, Sparse(eps=2.0**-7), chunk_rows=8)[:2], whole[:2], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"error": -1.0}, "Sparse.error = -1.0"),
        ({"eps": 1.0}, "Sparse.eps = 1.0"),
        ({"pays": 2.0}, "Sparse.pays = 2.0"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Sparse(**options)


def test_logits_have_no_columns_to_leave_out():
    with pytest.raises(ValueError, match=r"Backend\.sparsity"):
        logits_policy_loss(
            torch.randn(3, 5), torch.tensor([0, 1, 2]), torch.randn(3), backend=Backend(sparsity=Sparse())
        )


@pytest.mark.parametrize("op", ["loss", "logprob"])
def test_compiled_programs_leave_out_the_same(op, plain_memory):
    hidden, weight, targets, advantages = peaked(40, 9, 300, sharpness=12.0)
    backend = Backend("chunked", sparsity=Sparse(eps=2.0**-7))

    def run(hidden, weight):
        if op == "logprob":
            return (linear_logprob(hidden, weight, targets, backend=backend).logprobs * advantages).sum(), {}
        out = linear_policy_loss(hidden, weight, targets, advantages, backend=backend)
        return out.loss, out.stats

    results = []
    for call in (run, torch.compile(run, fullgraph=True, backend="eager")):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        loss, stats = call(h, w)
        loss.backward()
        results.append((h.grad, w.grad, stats))
    (dh, dw, stats), (compiled_dh, compiled_dw, compiled_stats) = results
    torch.testing.assert_close(compiled_dh, dh, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(compiled_dw, dw, rtol=1e-12, atol=1e-14)
    assert set(compiled_stats) == set(stats)
    plain = torch.autograd.grad(linear_policy_loss(h, w, targets, advantages, backend="chunked").loss, h)[0]
    if op == "loss":
        assert stats["sparse_columns"] < 0.5
        torch.testing.assert_close(compiled_stats["sparse_error"], stats["sparse_error"])
        assert (plain - compiled_dh).norm() > 1e-4 * plain.norm()
