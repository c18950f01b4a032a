"""A low-rank addition to the head against the head whose operands are concatenated, in fp64.

[hidden, low_hidden] @ [weight, low_weight].T are the same logits, at the price of a copy.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from gft_kernels import Backend, Head, LowRank, Sparse, gft, linear_logprob, linear_policy_loss, logits_policy_loss, sft

from ..helpers.cases import BACKENDS, TRANSFORMS
from ..helpers.formulas import OBJECTIVES
from ..helpers.problems import (
    Problem,
    assert_accurate,
    make_problem,
    naive,
    naive_logprobs,
    token_mean,
)
from ..helpers.recorder import Recorder

FUSED = ("chunked", "triton")
RANKS = (1, 3, 19)  # off the kernels' steps of 16, and more than one of them


class Leaves(NamedTuple):
    """The operands of a call, each a leaf."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor
    low_hidden: Tensor
    low_weight: Tensor

    def head(self, **transforms: float) -> Head:
        return Head(self.bias, low_rank=LowRank(self.low_hidden, self.low_weight), **transforms)

    def gradients(self) -> tuple[Tensor | None, ...]:
        return tuple(x.grad for x in self)


def make(rank: int, *, n: int = 50, d: int = 11, v: int = 37, dtype: torch.dtype = torch.float64) -> Problem:
    """A problem of D = d + rank, which `split` takes apart."""
    return make_problem(n, d + rank, v, dtype=dtype)


def split(problem: Problem, rank: int) -> Leaves:
    halves = [x.detach().split((x.shape[1] - rank, rank), 1) for x in problem[:2]]
    (hidden, low_hidden), (weight, low_weight) = halves
    operands = (hidden, weight, problem.bias, low_hidden, low_weight)
    return Leaves(*(x.clone().requires_grad_() for x in operands))


def loss_of(leaves: Leaves, problem: Problem, backend: str, transforms: dict | None = None, objective=gft(0.1)):  # noqa: B008
    return linear_policy_loss(
        leaves.hidden,
        leaves.weight,
        problem.targets,
        problem.advantages,
        objective=objective,
        token_weights=token_mean(problem.targets),
        head=leaves.head(**(transforms or {})),
        backend=Backend(backend, chunk_rows=16, skip_rows=False),
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("transform", "rank"), [*((name, 3) for name in TRANSFORMS), ("plain", 1), ("all", 19)])
def test_linear_policy_loss_is_that_of_the_concatenated_head(transform, rank, backend):
    problem, transforms = make(rank), TRANSFORMS[transform]
    leaves = split(problem, rank)
    out = loss_of(leaves, problem, backend, transforms)
    out.loss.backward()
    want, whole = naive(problem, OBJECTIVES["gft-launcher"][1], **transforms), split(problem, rank)
    entropy = naive_logprobs(problem.hidden, problem.weight, problem.targets, bias=problem.bias, **transforms)[1]
    torch.testing.assert_close((out.loss.detach(), out.logprobs), (want.loss, want.logprobs), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(out.entropy, entropy, rtol=1e-10, atol=1e-12)
    exact = split(problem._replace(hidden=want.hidden, weight=want.weight, bias=want.bias), rank)
    for name, got, right in zip(whole._fields, leaves.gradients(), exact, strict=True):
        torch.testing.assert_close(got, right.detach(), rtol=1e-9, atol=1e-13, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("transform", "rank"), [("plain", 19), ("all", 3)])
def test_linear_logprob_is_that_of_the_concatenated_head(transform, rank, backend):
    problem, transforms = make(rank), TRANSFORMS[transform]
    leaves, upstream = split(problem, rank), torch.randn(2, 50, dtype=torch.float64)
    run = Backend(backend, chunk_rows=16)
    got = linear_logprob(*leaves[:2], problem.targets, head=leaves.head(**transforms), backend=run)
    torch.autograd.backward(tuple(got), tuple(upstream))
    hidden, weight, bias = (x.clone().requires_grad_() for x in problem[:3])
    want = naive_logprobs(hidden, weight, problem.targets, bias=bias, **transforms)
    torch.autograd.backward(want, tuple(upstream))
    torch.testing.assert_close(tuple(got), want, rtol=1e-10, atol=1e-12)
    exact = split(problem._replace(hidden=hidden.grad, weight=weight.grad, bias=bias.grad), rank)
    torch.testing.assert_close(leaves.gradients(), tuple(x.detach() for x in exact), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_linear_logprob_gradcheck(backend):
    problem = make(2, n=7, d=4, v=5)

    def logprobs_and_entropy(*operands):
        head = Leaves(*operands).head(**TRANSFORMS["all"])
        return tuple(linear_logprob(*operands[:2], problem.targets, head=head, backend=Backend(backend, chunk_rows=2)))

    assert gradcheck(logprobs_and_entropy, tuple(split(problem, 2)), fast_mode=True)


@pytest.mark.parametrize("low", [None, torch.float32], ids=["same dtype", "fp32"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", FUSED)
def test_gradients_are_accurate_and_have_their_operands_dtype(backend, dtype, low):
    problem = make(19, n=50, d=33, v=257, dtype=dtype)
    leaves = split(problem, 19)
    if low is not None:  # as PEFT keeps adapters
        leaves = leaves._replace(
            low_hidden=leaves.low_hidden.detach().to(low).requires_grad_(),
            low_weight=leaves.low_weight.detach().to(low).requires_grad_(),
        )
    weights = (problem.targets != -100).float()  # a sum, so that fp16 stays in its normal range
    run = Backend(backend, chunk_rows=16, skip_rows=False)
    out = linear_policy_loss(
        *leaves[:2], problem.targets, objective=sft(), token_weights=weights, head=leaves.head(), backend=run
    )
    out.loss.backward()
    want = naive(problem, OBJECTIVES["sft"][1], weights)
    assert (out.logprobs - want.logprobs).abs().max() <= 2e-5
    exact = split(problem._replace(hidden=want.hidden, weight=want.weight, bias=want.bias), 19)
    for leaf, right in zip(leaves, exact, strict=True):
        assert leaf.grad.dtype == leaf.dtype
        # Triton holds logit gradients in the operands' common dtype.
        assert_accurate(leaf.grad, right.detach(), dtype if backend == "triton" else None)


WANTED = {
    "LoRA": ("hidden", "low_hidden", "low_weight"),
    "LoRA behind a frozen backbone": ("low_hidden", "low_weight"),
    "the hidden states alone": ("hidden",),
    "low_hidden alone": ("low_hidden",),
    "low_weight alone": ("low_weight",),
    "the weight alone": ("weight",),
}


@pytest.mark.parametrize("wanted", WANTED.values(), ids=WANTED)
@pytest.mark.parametrize("backend", FUSED)
def test_what_nobody_wants_is_neither_formed_nor_changes_the_rest(backend, wanted):
    problem = make(3)
    every = split(problem, 3)
    whole = loss_of(every, problem, backend)
    whole.loss.backward()
    leaves = Leaves(
        *(x.requires_grad_(name in wanted) for name, x in zip(every._fields, split(problem, 3), strict=True))
    )
    with Recorder() as recorder:
        out = loss_of(leaves, problem, backend)
        out.loss.backward()
    torch.testing.assert_close(out.entropy, whole.entropy, rtol=1e-10, atol=1e-12)
    for name, got, right in zip(every._fields, leaves.gradients(), every.gradients(), strict=True):
        assert (got is None) == (name not in wanted)
        assert got is None or torch.equal(got, right), name
    if backend == "chunked":  # the interpreter copies what a kernel is given
        assert ((37, 11) in recorder.shapes) == ("weight" in wanted)  # [V, D], of dweight or of a copy
        assert ((37, 3) in recorder.shapes) == ("low_weight" in wanted)


def test_a_frozen_head_allocates_nothing_of_the_size_of_its_weight():
    n, d, v, rank = 64, 48, 200, 4  # a chunk of 8 rows, and [N, D], are smaller than [V, D]
    leaves, targets = split(make(rank, n=n, d=d, v=v, dtype=torch.float32), rank), torch.randint(v, (n,))
    leaves.weight.requires_grad_(False)
    leaves.bias.requires_grad_(False)
    run = Backend("chunked", chunk_rows=8)
    with Recorder() as recorder:
        linear_policy_loss(*leaves[:2], targets, objective=sft(), head=leaves.head(), backend=run).loss.backward()
    assert leaves.low_weight.grad.shape == (v, rank)
    assert recorder.largest() <= n * d < v * d


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_and_several_adapters_change_nothing(backend):
    problem = make(6)
    leaves = split(problem, 6)
    want = loss_of(leaves, problem, backend).loss
    want.backward()
    first, second = ([x.detach()[:, at].T.contiguous().T for x in leaves[3:]] for at in (slice(0, 2), slice(2, 6)))
    for x in (*first, *second):
        x.requires_grad_()
    low = LowRank(*(torch.cat(pair, 1) for pair in zip(first, second, strict=True)))
    strided = LowRank(low.hidden.T.contiguous().T, low.weight.T.contiguous().T)
    run = Backend(backend, chunk_rows=16)
    given = {"objective": gft(0.1), "token_weights": token_mean(problem.targets), "backend": run}
    hidden, weight, bias = (x.detach() for x in leaves[:3])
    got = linear_policy_loss(
        hidden, weight, problem.targets, problem.advantages, head=Head(bias, low_rank=strided), **given
    ).loss
    got.backward()
    torch.testing.assert_close(got, want)
    for whole, a, b in zip(leaves[3:], first, second, strict=True):
        torch.testing.assert_close(torch.cat((a.grad, b.grad), 1), whole.grad)


@pytest.mark.usefixtures("plain_memory")
@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_program_equals_eager(backend):
    problem = make(3, dtype=torch.float32)
    torch._dynamo.reset()

    def run(leaves: Leaves) -> Tensor:
        lp = linear_logprob(*leaves[:2], problem.targets, head=leaves.head(temperature=0.7), backend=backend)
        return loss_of(leaves, problem, backend).loss + lp.logprobs.sum() + 0.1 * lp.entropy.sum()

    found = []
    for call in (run, torch.compile(run, backend="aot_eager", fullgraph=True)):
        leaves = split(problem, 3)
        leaves.weight.requires_grad_(False)
        loss = call(leaves)
        loss.backward()
        found.append((loss.detach(), *(g for g in leaves.gradients() if g is not None)))
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)
    assert len(found[0]) == 5


HIDDEN, WEIGHT, TARGETS = torch.randn(6, 4), torch.randn(9, 4), torch.arange(6)
LOW = LowRank(torch.randn(6, 2), torch.randn(9, 2))
REFUSED = {
    "other rows": ({"hidden": torch.randn(5, 2)}, ValueError, r"low_rank has hidden \(5, 2\).*N = 6, V = 9"),
    "another V": ({"weight": torch.randn(8, 2)}, ValueError, r"weight \(8, 2\); they must be \[N, r\] and \[V, r\]"),
    "two ranks": ({"weight": torch.randn(9, 3)}, ValueError, r"one rank r > 0"),
    "transposed": ({"weight": torch.randn(2, 9)}, ValueError, r"scaling \* dropout\(x\) @ lora_A.T and lora_B"),
    "batched": ({"hidden": torch.randn(2, 3, 2)}, ValueError, r"low_rank has hidden \(2, 3, 2\)"),
    "no rank": ({"hidden": torch.randn(6, 0), "weight": torch.randn(9, 0)}, ValueError, r"r > 0"),
    "integers": ({"weight": LOW.weight.long()}, TypeError, "Head.low_rank.weight has dtype torch.int64"),
    "a layer": ({"weight": torch.nn.Linear(2, 9)}, TypeError, r"Head.low_rank.weight is Linear.*its weight, \[V, r\]"),
    "elsewhere": ({"hidden": LOW.hidden.to("meta")}, ValueError, "Head.low_rank.hidden is on meta"),
}


@pytest.mark.parametrize(("change", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_factors_that_do_not_fit_are_refused(change, error, message):
    head = Head(low_rank=LOW._replace(**change))
    with pytest.raises(error, match=message):
        linear_logprob(HIDDEN, WEIGHT, TARGETS, head=head)
    with pytest.raises(error, match=message):
        linear_policy_loss(HIDDEN, WEIGHT, TARGETS, objective=sft(), head=head)


def test_what_does_not_go_together_is_refused():
    with pytest.raises(TypeError, match=r"Head.low_rank is tuple: give LowRank\(hidden, weight\)"):
        Head(low_rank=tuple(LOW))
    with pytest.raises(ValueError, match=r"(?s)Head\.low_rank = LowRank.* but logits are given"):
        logits_policy_loss(HIDDEN, TARGETS % 4, objective=sft(), head=Head(low_rank=LOW))
    sparse = Backend("chunked", sparsity=Sparse())
    with pytest.raises(ValueError, match=r"Backend.sparsity and Head.low_rank do not go together"):
        linear_policy_loss(HIDDEN, WEIGHT, TARGETS, objective=sft(), head=Head(low_rank=LOW), backend=sparse)
