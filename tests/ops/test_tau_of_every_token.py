"""gft(tau) with a tensor [N]: rectification by source, one call in place of one for every tau."""

from __future__ import annotations

import pytest
import torch

from gft_kernels import Backend, gft, kl, linear_policy_loss, logits_policy_loss

from ..helpers.cases import BACKENDS
from ..helpers.problems import make_problem

PROBLEM = make_problem(33, 8, 40)
N = len(PROBLEM.targets)
TAUS = (0.0, 0.02, 0.7, 1.5)  # at V = 40 some p lie on either side of 0.02
OWNER = torch.arange(N) % len(TAUS)
TAU = torch.tensor(TAUS, dtype=torch.float64)[OWNER]
GIVEN = {"token_weights": torch.rand(N, dtype=torch.float64), "ref_logprobs": PROBLEM.ref_logprobs}


def gradients(loss: torch.Tensor, leaves: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return loss.detach(), *torch.autograd.grad(loss, leaves)


def leaves() -> tuple[torch.Tensor, torch.Tensor]:
    return PROBLEM.hidden.clone().requires_grad_(), PROBLEM.weight.clone().requires_grad_()


@pytest.mark.parametrize("penalty", [None, kl(0.1)], ids=["alone", "with kl"])
@pytest.mark.parametrize("chunk_rows", [None, 5])
@pytest.mark.parametrize("name", BACKENDS)
def test_tau_of_every_token_is_a_call_for_every_tau(name, chunk_rows, penalty):
    backend, at = Backend(name, chunk_rows=chunk_rows), leaves()

    def loss(tau, targets):
        objective = gft(tau) if penalty is None else penalty + gft(tau)
        return linear_policy_loss(*at, targets, PROBLEM.advantages, objective=objective, backend=backend, **GIVEN).loss

    parts = [loss(tau, torch.where(k == OWNER, PROBLEM.targets, -100)) for k, tau in enumerate(TAUS)]
    torch.testing.assert_close(gradients(loss(TAU, PROBLEM.targets), at), gradients(sum(parts), at))


@pytest.mark.parametrize("name", BACKENDS)
def test_tau_of_every_token_on_logits(name):
    hidden, weight = leaves()
    given = {"objective": gft(TAU) + kl(0.1), **GIVEN}
    arguments = (PROBLEM.targets, PROBLEM.advantages)
    head = linear_policy_loss(hidden, weight, *arguments, backend=name, **given)
    logits = logits_policy_loss(hidden @ weight.T, *arguments, backend=name, **given)
    both = [gradients(found.loss, (hidden, weight)) for found in (logits, head)]
    torch.testing.assert_close(*both)
    for found in (logits, head):
        rows = PROBLEM.targets >= 0  # the penalty skips none
        p = head.logprobs[rows].exp()
        rectified = p < TAU[rows]
        assert 0 < rectified.sum() < rows.sum()
        torch.testing.assert_close(found.stats["rectified_fraction"], rectified.double().mean())
        torch.testing.assert_close(found.stats["mean_c"], torch.where(rectified, p, 1).mean())


def test_own_term_of_a_sum_is_not_handed_tau():
    seen = []

    def own(logprobs, *, advantages, old_logprobs, ref_logprobs):  # no **kwargs to swallow it
        seen.append(len(logprobs))
        return -logprobs * advantages

    at = leaves()
    found = linear_policy_loss(*at, PROBLEM.targets, PROBLEM.advantages, objective=gft(TAU) + own)
    want = [
        linear_policy_loss(*at, PROBLEM.targets, PROBLEM.advantages, objective=o).loss for o in (gft(TAU), gft(0.0))
    ]
    assert seen
    torch.testing.assert_close(found.loss, sum(want))


REFUSED = {
    "one value short": (TAU[1:], ValueError, r"tau has shape \(32,\)"),
    "a scalar tensor": (TAU[0], TypeError, r"GFT.tau is a tensor of shape \(\): give a number"),
    "integers": (OWNER, TypeError, "tau has dtype torch.int64"),
    "NaN": (TAU.index_fill(0, (PROBLEM.targets >= 0).nonzero()[4], torch.nan), ValueError, r"tau\[\d+\] is NaN"),
}


@pytest.mark.parametrize(("tau", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_tau_that_is_none_is_refused(tau, error, message):
    with pytest.raises(error, match=message):
        linear_policy_loss(PROBLEM.hidden, PROBLEM.weight, PROBLEM.targets, PROBLEM.advantages, objective=gft(tau))


def test_term_with_a_number_keeps_it_beside_one_with_a_tau_of_every_token():
    def loss(objective):
        return linear_policy_loss(
            PROBLEM.hidden, PROBLEM.weight, PROBLEM.targets, PROBLEM.advantages, objective=objective
        ).loss

    torch.testing.assert_close(loss(gft(0.02) + gft(TAU)), loss(gft(0.02)) + loss(gft(TAU)))
    torch.testing.assert_close(loss(gft(TAU) + gft(TAU)), 2 * loss(gft(TAU)))


def test_sum_of_two_taus_of_every_token_is_refused():
    given = (PROBLEM.hidden, PROBLEM.weight, PROBLEM.targets, PROBLEM.advantages)
    with pytest.raises(ValueError, match=r"both objectives of the sum have a tau \[N\]"):
        linear_policy_loss(*given, objective=gft(TAU) + (kl(0.1) + gft(TAU / 2)))
