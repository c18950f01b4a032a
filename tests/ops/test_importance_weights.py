"""Importance weights: a factor on a token's loss, through which no gradient flows."""

from __future__ import annotations

import pytest
import torch

from gft_kernels import Backend, gft, grpo, gspo, kl, linear_policy_loss, logits_policy_loss, sft
from gft_kernels.losses.objectives import Weighted

from ..helpers.cases import BACKENDS
from ..helpers.formulas import dro
from ..helpers.problems import make_problem

PROBLEM = make_problem(33, 8, 40)
N = len(PROBLEM.targets)
VALID = PROBLEM.targets != -100
G = torch.Generator().manual_seed(3)
RATIOS = (2 * torch.rand(N, generator=G).double()).index_fill(0, torch.tensor([4, 5]), 0)
IDS = torch.arange(N) % 5
GIVEN = {"old_logprobs": PROBLEM.old_logprobs, "ref_logprobs": PROBLEM.ref_logprobs}
# An objective, and whether some of its terms have no weight.
OBJECTIVES = {
    "sft": (sft(), None),
    "gft, tau of every token": (gft(torch.rand(N, generator=G).double()), None),
    "grpo with kl": (grpo(0.1, 0.2), kl(0.1)),
    "a function": (dro, None),
    "sequences with kl": (gspo(0.1, 0.2, sequence_ids=IDS), kl(0.1)),
}


def leaves() -> tuple[torch.Tensor, torch.Tensor]:
    return PROBLEM.hidden.clone().requires_grad_(), PROBLEM.weight.clone().requires_grad_()


def gradients(loss: torch.Tensor, at: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return loss.detach(), *torch.autograd.grad(loss, at)


def call(at, objective, weights, backend="chunked", **changes):
    given = {"objective": objective, "token_weights": weights, "backend": backend, **GIVEN, **changes}
    return linear_policy_loss(*at, PROBLEM.targets, PROBLEM.advantages, **given)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_multiply_the_loss_of_a_token(backend, name):
    """As token weights do, but not the penalty beside."""
    base, penalty = OBJECTIVES[name]
    at, tokens = leaves(), torch.rand(N, generator=G).double()
    ratios = RATIOS.clone().requires_grad_()
    weighted = Weighted(base, ratios)
    options = Backend(backend, chunk_rows=16)
    want = call(at, base, tokens * RATIOS, options).loss
    if penalty is not None:
        weighted, want = weighted + penalty, want + call(at, penalty, tokens, options).loss
    want = gradients(want, at)
    found = call(at, weighted, tokens, options)
    torch.testing.assert_close(gradients(found.loss, at), want, rtol=1e-10, atol=1e-13)
    logits = logits_policy_loss(
        at[0] @ at[1].T,
        PROBLEM.targets,
        PROBLEM.advantages,
        objective=weighted,
        token_weights=tokens,
        backend=backend,
        **GIVEN,
    )
    torch.testing.assert_close(gradients(logits.loss, at), want, rtol=1e-10, atol=1e-13)
    assert ratios.grad is None


def test_rows_of_weight_zero_are_skipped():
    found = call(leaves(), Weighted(sft(), RATIOS), None)
    assert torch.equal(found.logprobs.isnan(), VALID & (RATIOS == 0))
    with_penalty = call(leaves(), Weighted(sft(), RATIOS) + kl(0.1), None)
    assert not with_penalty.logprobs.isnan().any()


def test_stats_are_those_of_the_objective():
    options = Backend("chunked", skip_rows=False)
    plain = call(leaves(), grpo(0.1, 0.2), None, options).stats
    torch.testing.assert_close(call(leaves(), Weighted(grpo(0.1, 0.2), RATIOS), None, options).stats, plain)


ROW = int(VALID.nonzero()[3])
REFUSED = {
    "NaN": (RATIOS.index_fill(0, torch.tensor([ROW]), torch.nan), ValueError, rf"importance_weights\[{ROW}\] is NaN"),
    "negative": (
        RATIOS.index_fill(0, torch.tensor([ROW]), -0.5),
        ValueError,
        rf"importance_weights\[{ROW}\] = -0.5 \(1 such rows.*it must be 0 or more",
    ),
    "one short": (RATIOS[1:], ValueError, r"importance_weights has shape \(32,\)"),
    "integers": (IDS, TypeError, "importance_weights has dtype torch.int64"),
    "a number": (0.5, TypeError, "importance_weights are float: give a tensor"),
}


@pytest.mark.parametrize(("weights", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_weights_that_are_none_are_refused(weights, error, message):
    with pytest.raises(error, match=message):
        call(leaves(), Weighted(sft(), weights), None)


def test_weights_given_twice_are_refused():
    with pytest.raises(ValueError, match="importance_weights twice"):
        call(leaves(), Weighted(Weighted(sft(), RATIOS), RATIOS), None)
    with pytest.raises(ValueError, match=r"both objectives of the sum have a importance_weights \[N\]"):
        call(leaves(), Weighted(sft(), RATIOS) + Weighted(gft(), RATIOS.clone()), None)


def test_weighted_function_is_still_held_to_its_row():
    def mixing(logprobs, **_):
        return logprobs - logprobs.mean()

    with pytest.raises(ValueError, match="mixes rows"):
        call(leaves(), Weighted(mixing, RATIOS), None)
