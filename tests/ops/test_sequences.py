"""Ratios of whole sequences against a loop over them, with autograd's gradient."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck

from gft_kernels import (
    Backend,
    GroupRewards,
    Head,
    LinearPolicyLoss,
    Sparse,
    cispo,
    grpo,
    gspo,
    kl,
    linear_logprob,
    linear_policy_loss,
    logits_policy_loss,
    reinforce,
    token_weights,
)

from ..helpers.cases import BACKENDS
from ..helpers.problems import make_problem, naive_logprobs

PROBLEM = make_problem(33, 8, 40)
N = len(PROBLEM.targets)
VALID = PROBLEM.targets != -100
# Six sequences, their tokens in no order; the last has masked tokens only, and number 4 does not
# occur.
IDS = torch.tensor([0, 1, 2, 3, 5])[torch.randperm(N, generator=torch.Generator().manual_seed(1)) % 5]
IDS = IDS.masked_fill(~VALID & (IDS == 0), 7)
G = torch.Generator().manual_seed(2)
ADVANTAGES, WEIGHTS = torch.randn(N, generator=G).double(), torch.rand(N, generator=G).double()  # of every token
LOGS = {"old_logprobs": PROBLEM.old_logprobs, "ref_logprobs": PROBLEM.ref_logprobs}
GIVEN = {"token_weights": WEIGHTS, **LOGS}


def leaves() -> tuple[torch.Tensor, torch.Tensor]:
    return PROBLEM.hidden.clone().requires_grad_(), PROBLEM.weight.clone().requires_grad_()


def gradients(loss: torch.Tensor, at: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return loss.detach(), *torch.autograd.grad(loss, at)


def clipped(s, a, low, high):
    return -torch.minimum(s * a, s.clamp(1 - low, 1 + high) * a)


def dual(s, a):
    return torch.where(a < 0, torch.minimum(clipped(s, a, 0.1, 0.2), -1.1 * a), clipped(s, a, 0.1, 0.2))


def k3(lp, ref):
    return (ref - lp).exp() - (ref - lp) - 1


# (objective of the ids, loss [n] of a sequence's lp, ratio s, A, ref)
CASES = {
    "gspo": (lambda ids: gspo(0.05, 0.1, sequence_ids=ids), lambda lp, s, a, ref: clipped(s, a, 0.05, 0.1)),
    "dual clip": (lambda ids: gspo(0.1, 0.2, 1.1, sequence_ids=ids), lambda lp, s, a, ref: dual(s, a)),
    "cispo": (
        lambda ids: cispo(0.05, 0.1, ids),
        lambda lp, s, a, ref: -s.detach().clamp(0.95, 1.1) * a * lp,
    ),
    "with kl": (
        lambda ids: gspo(0.05, 0.1, sequence_ids=ids) + kl(0.3),
        lambda lp, s, a, ref: clipped(s, a, 0.05, 0.1) + 0.3 * k3(lp, ref),
    ),
    "with kl corrected": (
        lambda ids: kl(0.3, corrected=True, sequence_ids=ids) + gspo(0.05, 0.1, sequence_ids=ids),
        lambda lp, s, a, ref: clipped(s, a, 0.05, 0.1) + 0.3 * s * k3(lp, ref),
    ),
    "with another": (
        lambda ids: gspo(0.05, 0.1, sequence_ids=ids) + reinforce(),
        lambda lp, s, a, ref: clipped(s, a, 0.05, 0.1) - a * lp,
    ),
}


FORMULAS = {name: formula for name, (_, formula) in CASES.items()}
FORMULAS["no clip range"] = lambda lp, s, a, ref: clipped(s, a, 0.0, 0.0)


def naive_loss(name, at, ids=IDS, advantages=ADVANTAGES):
    lp, _ = naive_logprobs(*at, PROBLEM.targets)
    total = torch.zeros((), dtype=torch.float64)
    for i in ids[VALID].unique():
        rows = VALID & (ids == i)
        ratio = (lp - PROBLEM.old_logprobs)[rows].mean().exp()
        losses = FORMULAS[name](lp[rows], ratio, advantages[rows], PROBLEM.ref_logprobs[rows])
        total = total + (WEIGHTS[rows] * losses).sum()
    return total


@pytest.mark.parametrize("skip_rows", [True, False], ids=["skip", "all"])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_loss_and_gradients_are_those_of_a_loop_over_sequences(backend, name, skip_rows):
    at = leaves()
    options = Backend(backend, chunk_rows=16, skip_rows=skip_rows)
    given = {"objective": CASES[name][0](IDS), "backend": options, **GIVEN}
    want = gradients(naive_loss(name, at), at)
    head = linear_policy_loss(*at, PROBLEM.targets, ADVANTAGES, **given)
    torch.testing.assert_close(gradients(head.loss, at), want, rtol=1e-10, atol=1e-13)
    logits = logits_policy_loss(at[0] @ at[1].T, PROBLEM.targets, ADVANTAGES, **given, inplace=backend != "eager")
    torch.testing.assert_close(gradients(logits.loss, at), want, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
def test_clipped_sequences_are_no_part_of_the_second_pass(backend):
    """Where all tokens of a sequence share an advantage, the clip takes its whole gradient."""
    at, ids = leaves(), torch.where(IDS == 7, 0, IDS)
    advantages = torch.tensor([1.0, -1.0, 0.5, -0.5, 0.0, 2.0], dtype=torch.float64)[ids]
    given = {"objective": gspo(0.0, 0.0, sequence_ids=ids), "backend": Backend(backend, chunk_rows=16), **GIVEN}
    found = linear_policy_loss(*at, PROBLEM.targets, advantages, **given)
    clipped_rows = VALID & (found.coefficients == 0)
    assert 0 < clipped_rows.sum() < VALID.sum()
    want = gradients(naive_loss("no clip range", at, ids, advantages), at)
    torch.testing.assert_close(gradients(found.loss, at), want, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend):
    small = make_problem(7, 4, 5, seed=1)
    ids = torch.tensor([0, 1, 0, 1, 1, 0, 2])
    objective = gspo(0.05, 0.1, sequence_ids=ids) + kl(0.3, corrected=True, sequence_ids=True)
    given = {"old_logprobs": small.old_logprobs, "ref_logprobs": small.ref_logprobs, "token_weights": WEIGHTS[:7]}

    def loss(hidden, weight):
        options = Backend(backend, chunk_rows=4)
        return linear_policy_loss(
            hidden, weight, small.targets, ADVANTAGES[:7], objective=objective, backend=options, **given
        ).loss

    at = small.hidden.clone().requires_grad_(), small.weight.clone().requires_grad_()
    assert gradcheck(loss, at, fast_mode=backend == "triton")


def call(objective, backend="chunked", **changes):
    given = {"objective": objective, "backend": backend, "advantages": ADVANTAGES, **GIVEN, **changes}
    return linear_policy_loss(PROBLEM.hidden, PROBLEM.weight, PROBLEM.targets, **given)


@pytest.mark.parametrize("backend", BACKENDS)
def test_stats_and_coefficients_are_those_of_the_sequences(backend):
    found = call(gspo(0.05, 0.1, sequence_ids=IDS), backend)
    lp = linear_logprob(PROBLEM.hidden, PROBLEM.weight, PROBLEM.targets).logprobs.clone().requires_grad_()
    ratio, outside, summed = torch.zeros(N).double(), torch.zeros(N).bool(), 0
    for i in IDS[VALID].unique():
        rows = VALID & (i == IDS)
        s = (lp - PROBLEM.old_logprobs)[rows].mean().exp()
        ratio[rows] = s.detach()
        a = ADVANTAGES[rows]
        outside[rows] = ((s > 1.1) & (a > 0)) | ((s < 0.95) & (a < 0))
        summed = summed + clipped(s, a, 0.05, 0.1).sum()
    torch.testing.assert_close(found.stats["ratio"], ratio[VALID].mean())
    torch.testing.assert_close(found.stats["clip_fraction"], outside[VALID].double().mean())
    assert 0 < found.stats["clip_fraction"] < 1
    torch.testing.assert_close(found.coefficients, torch.autograd.grad(summed, lp)[0])
    torch.testing.assert_close(found.logprobs, lp.detach())


def test_sequences_of_one_token_are_tokens():
    torch.testing.assert_close(call(gspo(0.05, 0.1, sequence_ids=torch.arange(N))).loss, call(grpo(0.05, 0.1)).loss)


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_whole_sequences_are_skipped(backend):
    advantages = torch.zeros(N).double()
    live = int((VALID & (IDS == 2)).nonzero()[0])
    advantages[live] = 1.5
    found = call(gspo(0.5, 0.5, sequence_ids=IDS), backend, advantages=advantages)
    seen = VALID & (IDS == 2)
    assert torch.equal(~found.logprobs.isnan() & VALID, seen)
    assert found.stats["active_tokens"] == seen.sum() > 1
    assert (found.coefficients[seen] != 0).all()  # the token's ratio is that of all


@pytest.mark.parametrize("backend", BACKENDS)
def test_batch_without_tokens_is_zero_with_a_live_graph(backend):
    at = leaves()
    for ids, targets in ((IDS, torch.full((N,), -100)), (IDS[:0], PROBLEM.targets[:0])):
        found = linear_policy_loss(
            at[0][: len(ids)], at[1], targets, ADVANTAGES[: len(ids)], objective=gspo(sequence_ids=ids), backend=backend
        )
        loss, *slopes = gradients(found.loss, at)
        assert loss == 0
        assert all((x == 0).all() for x in slopes)


@pytest.mark.parametrize("backend", BACKENDS)
def test_impossible_token_leaves_numbers(backend):
    at = leaves()
    bias = torch.zeros(len(PROBLEM.weight), dtype=torch.float64)
    row = int((VALID & (IDS == 2)).nonzero()[0])
    bias[PROBLEM.targets[row]] = -torch.inf
    found = linear_policy_loss(
        *at,
        PROBLEM.targets,
        ADVANTAGES,
        objective=gspo(0.05, 0.1, sequence_ids=IDS),
        head=Head(bias),
        backend=backend,
        **GIVEN,
    )
    assert all(x.isfinite().all() for x in gradients(found.loss, at))


@pytest.mark.parametrize("backend", BACKENDS)
def test_further_backward_gives_the_same(backend):
    at = leaves()
    objective = gspo(0.05, 0.1, sequence_ids=IDS)
    loss = linear_policy_loss(*at, PROBLEM.targets, ADVANTAGES, objective=objective, backend=backend, **GIVEN).loss
    first = torch.autograd.grad(loss, at, retain_graph=True)
    again = torch.autograd.grad(loss, at, 2 * torch.ones_like(loss))
    torch.testing.assert_close([2 * x for x in first], list(again))


def test_columns_may_be_left_out():
    found = call(gspo(0.05, 0.1, sequence_ids=IDS), Backend("chunked", sparsity=Sparse(error=1e-3)))
    assert any(name.startswith("sparse_") for name in found.stats)


# Where the ids come from


def test_groups_and_modules_bring_the_sequences():
    ids = torch.arange(N) // 4
    groups = GroupRewards(torch.randn(9, generator=G).double(), torch.arange(9) // 3, ids)
    advantages = groups.per_token(VALID, GroupRewards.per_sequence)
    want = call(gspo(0.05, 0.1, sequence_ids=ids), advantages=advantages).loss
    torch.testing.assert_close(call(gspo(0.05, 0.1), advantages=groups).loss, want)
    module = LinearPolicyLoss(gspo(0.05, 0.1), reduction="seq-mean-token-mean")
    weights = token_weights("seq-mean-token-mean", VALID, ids)
    want = call(gspo(0.05, 0.1, sequence_ids=ids), token_weights=weights)
    found = module(*PROBLEM[:2], PROBLEM.targets, ADVANTAGES, sequence_ids=ids, old_logprobs=PROBLEM.old_logprobs)
    torch.testing.assert_close(found.loss, want.loss)


REFUSED = {
    "nobody says which": (gspo(), ValueError, "nothing says which rows are one: give it sequence_ids"),
    "one short": (gspo(sequence_ids=IDS[1:]), ValueError, r"sequence_ids has shape \(32,\)"),
    "floats": (gspo(sequence_ids=IDS.double()), TypeError, "sequence_ids have dtype torch.float64"),
    "negative": (gspo(sequence_ids=IDS.masked_fill(IDS == 2, -3)), ValueError, r"sequence_ids\[\d+\] = -3 \("),
    "two of them": (
        gspo(sequence_ids=IDS) + kl(corrected=True, sequence_ids=IDS.clone()),
        ValueError,
        r"both objectives of the sum have a sequence_ids \[N\]: give both the same tensor",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_sequences_that_are_none_are_refused(name):
    objective, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        call(objective)


def test_numbers_and_ids_are_refused_when_they_are_given():
    with pytest.raises(ValueError, match=r"GRPO\.clip_low = -1"):
        gspo(-1.0)
    with pytest.raises(TypeError, match=r"GRPO\.sequence_ids is list: give a tensor"):
        gspo(sequence_ids=[0, 1])
    with pytest.raises(ValueError, match=r"only kl\(beta, corrected=True\) has a ratio"):
        kl(0.1, sequence_ids=True)
    with pytest.raises(ValueError, match="was not told which rows are a sequence"):
        gspo()(torch.zeros(3), advantages=torch.ones(3))


def test_own_function_beside_is_still_held_to_its_row():
    def mixing(logprobs, *, advantages, **_):
        return -logprobs * advantages.mean()

    def alone(logprobs, *, advantages, **_):
        return -logprobs * advantages

    call(gspo(0.05, 0.1, sequence_ids=IDS) + alone)
    with pytest.raises(ValueError, match="mixes rows"):
        call(gspo(0.05, 0.1, sequence_ids=IDS) + mixing)
