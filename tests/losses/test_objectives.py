"""Objectives at the edges of arithmetic and of autograd's modes."""

import pytest
import torch

from gft_kernels import Backend, cispo, dft, gft, grpo, kl, linear_logprob, linear_policy_loss
from gft_kernels.losses.objectives import losses_and_coefficients

LP = torch.tensor([-0.1, -30.0, -90.0, -200.0, -torch.inf])


def evaluate(objective, **per_token):
    given = {"advantages": None, "old_logprobs": None, "ref_logprobs": None, **per_token}
    return losses_and_coefficients(objective, LP, given)


NAN, INF = float("nan"), float("inf")
OUT_OF_RANGE = [
    (gft, {"tau": NAN}),
    (grpo, {"clip_low": NAN}),
    (grpo, {"clip_low": -0.1}),
    (grpo, {"clip_high": -0.1}),
    (grpo, {"dual_clip": 0.5}),
    (grpo, {"dual_clip": NAN}),
    (cispo, {"clip_high": NAN}),
    (cispo, {"clip_low": -1.0}),
    (kl, {"beta": NAN}),
    (kl, {"beta": INF}),
    (kl, {"clamp": -1.0}),
]


@pytest.mark.parametrize(("objective", "numbers"), OUT_OF_RANGE, ids=str)
def test_objective_out_of_range_is_refused_with_its_value(objective, numbers):
    ((name, value),) = numbers.items()
    with pytest.raises(ValueError, match=rf"{objective.__name__}\.{name} = {value}: give a number from"):
        objective(**numbers)


def test_sum_of_a_function_and_an_objective_in_either_order():
    def weighted(logprobs, *, advantages, **_):
        return -advantages * logprobs

    a, ref = torch.randn(5), torch.full((5,), -1.0)
    left = evaluate(weighted + kl(0.1), advantages=a, ref_logprobs=ref)
    right = evaluate(kl(0.1) + weighted, advantages=a, ref_logprobs=ref)
    for x, y in zip(left, right, strict=True):
        torch.testing.assert_close(x, y, equal_nan=True)
    assert (weighted + kl(0.1)).needs == ("ref_logprobs",)


def test_sum_with_something_that_is_no_function_is_refused():
    with pytest.raises(TypeError, match="unsupported operand"):
        sum([gft(), kl(0.1)])


def test_dft_reports_its_weight():
    targets = torch.randint(0, 20, (6,))
    hidden, weight = torch.randn(6, 4), torch.randn(20, 4)
    stats = linear_policy_loss(hidden, weight, targets, objective=dft()).stats
    torch.testing.assert_close(stats["mean_c"], linear_logprob(hidden, weight, targets).logprobs.exp().mean())


@pytest.mark.parametrize("backend", ["eager", "chunked", "triton"])
def test_linear_policy_loss_works_in_inference_mode(backend):
    hidden, weight, targets, advantages = (
        torch.randn(40, 8),
        torch.randn(30, 8),
        torch.randint(0, 30, (40,)),
        torch.randn(40),
    )
    expected = linear_policy_loss(hidden, weight, targets, advantages, backend=Backend(backend, chunk_rows=16))
    with torch.inference_mode():
        again = [x.clone() for x in (hidden, weight, targets, advantages)]
        found = linear_policy_loss(*again, objective=gft(), backend=Backend(backend, chunk_rows=16))
    torch.testing.assert_close(found.loss, expected.loss.detach())
    torch.testing.assert_close(found.coefficients, expected.coefficients)


def test_linear_policy_loss_refuses_an_objective_over_all_rows():
    mine, hidden, weight, targets = torch.randn(40), torch.randn(40, 8), torch.randn(30, 8), torch.randint(0, 30, (40,))
    with pytest.raises(ValueError, match=r"failed on 16 rows.*called on chunks of the active rows"):
        linear_policy_loss(
            hidden, weight, targets, objective=lambda lp, **_: -mine * lp, backend=Backend(chunk_rows=16)
        )
