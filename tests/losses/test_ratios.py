"""Objectives of a ratio at the edges of arithmetic, and what they report."""

import pytest
import torch

from gft_kernels import cispo, grpo, kl
from gft_kernels.losses.objectives import losses_and_coefficients

LP = torch.tensor([-0.1, -30.0, -90.0, -200.0, -torch.inf])


def evaluate(objective, **per_token):
    given = {"advantages": None, "old_logprobs": None, "ref_logprobs": None, **per_token}
    return losses_and_coefficients(objective, LP, given)


@pytest.mark.parametrize("objective", [grpo(), grpo(dual_clip=3.0), cispo()], ids=repr)
@pytest.mark.parametrize("sign", [1.0, -1.0, 0.0])
def test_ratio_objectives_stay_finite_when_the_ratio_overflows(objective, sign):
    """p / p_old of e^119 is infinite in fp32, and the clipped side must have gradient 0."""
    losses, coefficients = evaluate(objective, advantages=torch.full((5,), sign), old_logprobs=torch.full((5,), -320.0))
    assert not coefficients.isnan().any()
    assert not losses[:4].isnan().any()
    if sign >= 0 and isinstance(objective, grpo):
        assert (coefficients[:4] == 0).all()


def test_kl_stays_finite_far_from_the_reference_policy():
    losses, coefficients = evaluate(kl(0.5), ref_logprobs=torch.zeros(5))
    assert losses.isfinite().all()
    assert coefficients.isfinite().all()
    torch.testing.assert_close(losses[1], 0.5 * (torch.tensor(30.0).exp() - 31))
    assert losses[3] > losses[1]
    assert (coefficients[1:4] < -1e12).all()  # however far, back towards the reference policy


def test_kl_counts_for_its_clamp_at_most():
    ref = LP[:4] - torch.tensor([0.1, -1.5, 3.0, -4.0])
    given = {"ref_logprobs": ref}
    k3 = (ref - LP[:4]).exp() - (ref - LP[:4]) - 1
    losses, coefficients = losses_and_coefficients(kl(0.5, clamp=2.1), LP[:4], given)
    torch.testing.assert_close(losses, 0.5 * k3.clamp(max=2.1))
    torch.testing.assert_close(coefficients, torch.where(k3 > 2.1, 0, 0.5 * (1 - (ref - LP[:4]).exp())))
    assert (coefficients == 0).tolist() == [False, False, False, True]
    assert kl(1.0, clamp=2.1).metrics(LP[:4], **given)["kl"].max() == 2.1


def plainly_corrected(lp, old, ref):
    """r * k3 by autograd, as the formula stands, in fp64 where its differences are harmless."""
    lp = lp.double().requires_grad_()
    ratio = (lp - (lp.detach() if old is None else old.double())).exp()
    loss = ratio * ((ref.double() - lp).exp() - (ref.double() - lp) - 1)
    return loss.detach(), torch.autograd.grad(loss.sum(), lp)[0]


@pytest.mark.parametrize("old", [None, torch.tensor([-0.3, -2.0, -5.0, -1.0])], ids=["on policy", "off policy"])
def test_corrected_kl_has_the_gradient_of_the_ratio_too(old):
    lp, ref = torch.tensor([-0.5, -2.0, -4.0, -3.0]), torch.tensor([-1.5, -2.0, -3.9, -0.1])
    got = losses_and_coefficients(kl(1.0, corrected=True), lp, {"ref_logprobs": ref, "old_logprobs": old})
    for ours, want in zip(got, plainly_corrected(lp, old, ref), strict=True):
        torch.testing.assert_close(ours.double(), want, rtol=1e-5, atol=1e-7)
    plain = losses_and_coefficients(kl(1.0), lp, {"ref_logprobs": ref, "old_logprobs": old})
    assert not torch.allclose(got[1], plain[1], atol=1e-2)


def test_corrected_kl_keeps_its_digits_far_from_the_reference_policy():
    # e^30 and e^30 cancel in the slope: fp32 would have nothing left of 30 by autograd.
    lp, ref = torch.tensor([-40.0, -30.0]), torch.tensor([-10.0, -1.0])
    _, slope = losses_and_coefficients(kl(1.0, corrected=True), lp, {"ref_logprobs": ref, "old_logprobs": lp})
    torch.testing.assert_close(slope, lp - ref)


def test_corrected_kl_stays_finite_where_both_ratios_overflow():
    old, ref = torch.full((5,), -320.0), torch.tensor([0.0, 0.0, 0.0, -torch.inf, -torch.inf])
    for found in evaluate(kl(0.5, corrected=True), old_logprobs=old, ref_logprobs=ref):
        assert found.isfinite().all()


def test_corrected_kl_counts_for_its_clamp_at_most():
    lp, ref, old = torch.tensor([-1.0, -1.0]), torch.tensor([-1.5, -1.5]), torch.tensor([-1.0, -3.0])
    given = {"ref_logprobs": ref, "old_logprobs": old}
    losses, coefficients = losses_and_coefficients(kl(1.0, clamp=0.5, corrected=True), lp, given)
    k3 = (ref - lp).exp() - (ref - lp) - 1  # 0.107, and e^2 times that is 0.787
    torch.testing.assert_close(losses, torch.tensor([k3[0], 0.5]))
    torch.testing.assert_close(coefficients, torch.tensor([0.5, 0.0]))


# Ratios of 0.37, 1 and 2.7 with either sign of the advantage; DAPO's clips.
OLD = torch.tensor([-1.0, -2.0, -3.0, -1.0, -2.0, -3.0])
CLIPPED = {
    "cispo clips a weight on both sides, whatever its advantage": (cispo(0.2, 0.28), [1, 0, 1, 1, 0, 1]),
    "cispo without a lower bound": (cispo(1.0, 0.28), [0, 0, 1, 0, 0, 1]),
    "grpo cuts only what would move away": (grpo(0.2, 0.28), [0, 0, 1, 1, 0, 0]),
}


@pytest.mark.parametrize(("objective", "clipped"), CLIPPED.values(), ids=CLIPPED)
def test_clip_fraction_counts_what_the_clip_altered(objective, clipped):
    given = {"advantages": torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0, -1.0]), "old_logprobs": OLD}
    logprobs = torch.full((6,), -2.0)
    counted = objective.metrics(logprobs, **given)["clip_fraction"]
    assert counted.tolist() == clipped
    free = type(objective)(1.0, 1e9)
    altered = (
        losses_and_coefficients(objective, logprobs, given)[1] != losses_and_coefficients(free, logprobs, given)[1]
    )
    assert altered.tolist() == [bool(x) for x in clipped]


def test_dual_clip_fraction_counts_what_it_cut():
    given = {"advantages": torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0, -1.0]), "old_logprobs": OLD}
    found = grpo(0.2, 0.28, dual_clip=2.0).metrics(torch.full((6,), -2.0), **given)
    assert found["dual_clip_fraction"].tolist() == [0, 0, 0, 0, 0, 1]
    assert "dual_clip_fraction" not in grpo().metrics(torch.full((6,), -2.0), **given)
