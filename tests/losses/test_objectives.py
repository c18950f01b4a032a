"""Objectives at the edges of arithmetic and of autograd's modes."""

import pytest
import torch

from gft_kernels import Backend, cispo, dft, gft, grpo, kl, linear_logprob, linear_policy_loss
from gft_kernels.losses.objectives import losses_and_coefficients

LP = torch.tensor([-0.1, -30.0, -90.0, -200.0, -torch.inf])


def evaluate(objective, **per_token):
    given = {"advantages": None, "old_logprobs": None, "ref_logprobs": None, **per_token}
    return losses_and_coefficients(objective, LP, given)


@pytest.mark.parametrize("objective", [grpo(), grpo(dual_clip=3.0), cispo()], ids=repr)
@pytest.mark.parametrize("sign", [1.0, -1.0, 0.0])
def test_ratio_objectives_stay_finite_when_the_ratio_overflows(objective, sign):
    """p / p_old of e^119 and more is infinite in fp32; the clipped side has gradient 0, not 0 *
    inf.
    """
    losses, coefficients = evaluate(objective, advantages=torch.full((5,), sign), old_logprobs=torch.full((5,), -320.0))
    assert not coefficients.isnan().any()
    assert not losses[:4].isnan().any()
    if sign >= 0 and isinstance(objective, grpo):
        assert (coefficients[:4] == 0).all()


def test_kl_stays_finite_far_from_the_reference():
    losses, coefficients = evaluate(kl(0.5), ref_logprobs=torch.zeros(5))
    assert losses.isfinite().all()
    assert coefficients.isfinite().all()
    torch.testing.assert_close(losses[1], 0.5 * (torch.tensor(30.0).exp() - 31))
    assert losses[3] > losses[1]
    assert (coefficients[1:4] < -1e12).all()  # however far, back towards the reference


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


def test_linear_policy_loss_explains_an_objective_that_closes_over_all_rows():
    mine, hidden, weight, targets = torch.randn(40), torch.randn(40, 8), torch.randn(30, 8), torch.randint(0, 30, (40,))
    with pytest.raises(ValueError, match=r"failed on 16 rows.*called on chunks of the active rows"):
        linear_policy_loss(
            hidden, weight, targets, objective=lambda lp, **_: -mine * lp, backend=Backend(chunk_rows=16)
        )
