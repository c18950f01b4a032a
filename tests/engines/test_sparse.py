"""Column-sparse gradients: what is kept, what stands for the rest, and a bound that holds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gft_kernels import Sparse, gft, grpo, sft
from gft_kernels.engines.accumulate import ChunkGradient, Rows
from gft_kernels.engines.columns import choose, filled_up, look
from gft_kernels.head import Operands

from ..helpers.sparse import BACKENDS, gradients, logit_gradients, peaked

ROUNDING = 1e-12

SPARSE = st.builds(
    Sparse,
    error=st.sampled_from((0.0, 1e-4, 1e-3, 1e-2, 0.1)),
    eps=st.one_of(st.none(), st.sampled_from((0.0, 2.0**-20, 2.0**-12, 2.0**-8, 2.0**-4, 0.3))),
    tail=st.booleans(),
    pays=st.just(1.0),
)
TRANSFORMS = st.sampled_from(
    ({}, {"softcap": 3.0}, {"temperature": 1.7}, {"scale": 0.3, "softcap": 5.0, "temperature": 0.8})
)
FOUND = settings(max_examples=150, deadline=None)


@FOUND
@given(
    st.integers(1, 40),
    st.integers(1, 12),
    st.integers(2, 60),
    st.integers(0, 10**6),
    st.floats(0, 30),
    SPARSE,
    TRANSFORMS,
    st.integers(1, 40),
    st.sampled_from((gft(0.7), gft(0.05), sft(), grpo())),
)
@example(1, 1, 2, 0, 0.0, Sparse(eps=0.3, pays=1.0), {}, 1, sft())
def test_the_bound_holds(n, d, v, seed, sharpness, sparsity, transforms, chunk_rows, objective):
    problem = peaked(n, d, v, seed, sharpness)
    options = {"chunk_rows": chunk_rows, "objective": objective, **transforms}
    exact, _ = logit_gradients(problem, **options)
    found, stats = logit_gradients(problem, sparsity, **options)
    error, bound = (found - exact).norm(), stats["sparse_error"] * exact.norm()
    assert error <= bound + ROUNDING * exact.norm()
    if sparsity.eps is None:
        assert stats["sparse_error"] <= sparsity.error * (1 + ROUNDING)


@FOUND
@given(st.integers(1, 40), st.integers(1, 12), st.integers(2, 60), st.integers(0, 10**6), st.floats(0, 30), SPARSE)
def test_the_bound_reaches_both_gradients_through_spectral_norms(n, d, v, seed, sharpness, sparsity):
    problem = peaked(n, d, v, seed, sharpness)
    hidden, weight = problem[:2]
    exact_dz, _ = logit_gradients(problem)
    exact, found = gradients(problem), gradients(problem, sparsity)
    bound = found[2]["sparse_error"] * exact_dz.norm()
    for got, want, factor in zip(found, exact[:2], (weight, hidden), strict=False):
        assert (got - want).norm() <= (bound + ROUNDING * exact_dz.norm()) * torch.linalg.matrix_norm(factor, 2) * (
            1 + ROUNDING
        )


@FOUND
@given(
    st.integers(1, 40),
    st.integers(2, 80),
    st.integers(0, 10**6),
    st.floats(0, 30),
    st.sampled_from((0.0, 2.0**-20, 2.0**-8, 0.1, 0.5)),
)
def test_every_column_above_the_threshold_is_kept(n, v, seed, sharpness, eps):
    hidden, weight, targets, upstream = peaked(n, 6, v, seed, sharpness)
    logprobs = (hidden @ weight.T).log_softmax(1)
    dz = -upstream[:, None] * logprobs.exp()
    dz[range(n), targets] = 0
    exps = (logprobs - logprobs.amax(1, keepdim=True)).exp()
    total, of_target = exps.sum(1), exps[range(n), targets]
    exps[range(n), targets] = 0
    own = -torch.log1p(exps.sum(1) / of_target)
    exps[range(n), targets] = -exps.sum(1)
    rows, sizes = Rows(targets, upstream, own), dz.abs().sum(1)
    chunk = ChunkGradient(slice(0, n), Operands(hidden, weight, None), exps, -upstream / total, 1.0)
    kept = choose(chunk, rows, (upstream * torch.expm1(own)).abs(), Sparse(eps=eps, pays=1.0), look)
    assert kept is not None
    limit = eps * sizes.max()
    above = {int(j) for j in (dz.abs()[sizes > limit] > limit * (1 + 1e-9)).any(0).nonzero()}
    assert above | {int(t) for t in targets[sizes > limit * (1 + 1e-9)]} <= set(kept.columns.tolist())
    assert set((sizes > limit * (1 + 1e-9)).nonzero().squeeze(1).tolist()) <= set(kept.rows.tolist())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sparsity", [Sparse(eps=0.0, pays=1.0), Sparse(error=0.0, pays=1.0)], ids=("eps", "error"))
def test_threshold_zero_is_exact(sparsity, backend):
    problem = peaked(37, 9, 83)
    exact, found = (
        gradients(problem, backend=backend, chunk_rows=16),
        gradients(problem, sparsity, backend, chunk_rows=16),
    )
    assert found[2]["sparse_exact"] == 0
    assert found[2]["sparse_error"] == 0
    for got, want in zip(found[:2], exact[:2], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("count", "multiple", "size"), [(0, 64, 0), (1, 64, 64), (64, 64, 64), (65, 64, 100), (7, 1, 7)]
)
def test_filled_up_adds_columns_and_loses_none(count, multiple, size):
    kept = torch.randperm(100)[:count].sort().values
    mask, columns = filled_up(torch.zeros(100, dtype=torch.bool).index_fill_(0, kept, True), multiple)
    assert len(columns) == len(set(columns.tolist())) == size
    assert torch.equal(columns[:count], kept)
    assert torch.equal(mask.nonzero().squeeze(1), columns.sort().values)


def test_a_smaller_threshold_is_nearer():
    problem = peaked(64, 9, 300, sharpness=12.0)
    exact = gradients(problem)[0]
    errors = [(gradients(problem, Sparse(eps=2.0**-k, pays=1.0))[0] - exact).norm().item() for k in (4, 8, 12, 16, 20)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 100 * errors[-1] > 0


@pytest.mark.parametrize("softcap", [None, 30.0])
@pytest.mark.parametrize("backend", BACKENDS)
def test_tail_keeps_row_and_column_sums(backend, softcap):
    hidden, weight, targets, advantages = peaked(48, 9, 200, sharpness=9.0)
    problem = (hidden, weight, targets, advantages.abs() + 0.1)  # one sign: the columns' sums are kept too
    options = {"backend": backend, "chunk_rows": 16, "softcap": softcap}
    exact, _ = logit_gradients(problem, **options)
    found, stats = logit_gradients(problem, Sparse(eps=2.0**-6), **options)
    assert stats["sparse_columns"] < 0.5
    assert (found - exact).norm() > 1e-3 * exact.norm()
    kept = found.any(1)
    assert kept.sum() > 24
    torch.testing.assert_close(found[kept].sum(1), exact[kept].sum(1), rtol=0, atol=1e-10)
    torch.testing.assert_close(found.sum(0), exact[kept].sum(0), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
def test_both_gradients_and_the_bias_are_products_of_one_logit_gradient(backend):
    problem = peaked(48, 9, 200, sharpness=9.0)
    hidden, weight = problem[:2]
    sparsity, options = Sparse(eps=2.0**-6), {"backend": backend, "chunk_rows": 20}
    dz, stats = logit_gradients(problem, sparsity, **options)
    bias = torch.zeros(200, dtype=torch.float64, requires_grad=True)
    dh, dw, _ = gradients(problem, sparsity, bias=bias, **options)
    assert 0 < stats["sparse_columns"] < 0.5
    assert (~dz.any(1)).sum() > 3  # rows were left out as well
    for got, want in ((dh, dz @ weight), (dw, dz.T @ hidden), (bias.grad, dz.sum(0))):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)


def test_tail_is_nearer_than_leaving_it_out():
    hidden, weight, targets, advantages = peaked(128, 16, 1000, sharpness=9.0)
    common = torch.randn(16, generator=torch.Generator().manual_seed(1)).double()
    weight = weight + 2 * common  # real heads have a common direction
    problem = (hidden, weight, targets, advantages)
    exact = gradients(problem)[0]
    with_tail, without = (gradients(problem, Sparse(eps=2.0**-8, tail=tail))[0] for tail in (True, False))
    assert (with_tail - exact).norm() < 0.3 * (without - exact).norm()


@pytest.mark.parametrize("backend", BACKENDS)
def test_flat_softmaxes_take_the_exact_path_and_say_so(backend):
    problem = peaked(40, 9, 100, sharpness=0.1)
    exact, found = (
        gradients(problem, backend=backend, chunk_rows=16),
        gradients(problem, Sparse(), backend, chunk_rows=16),
    )
    assert found[2]["sparse_exact"] == 1
    assert found[2]["sparse_columns"] == 1
    assert found[2]["sparse_error"] == 0
    assert all(torch.equal(got, want) for got, want in zip(found[:2], exact[:2], strict=True))


def test_chunks_that_did_not_pay_are_looked_at_ever_more_rarely(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "gft_kernels.engines.chunked.look", lambda grad, scale: seen.append(len(grad)) or look(grad, scale)
    )
    flat, sharp = peaked(640, 9, 100, sharpness=0.1), peaked(64, 9, 100, sharpness=20.0)
    gradients(flat, Sparse(), chunk_rows=32)  # 20 chunks: looked at 0, 2, 6, 14, a few rows of each
    assert seen == [16] * 4
    seen.clear()
    gradients(sharp, Sparse(), chunk_rows=32)
    assert seen == [16, 32] * 2
