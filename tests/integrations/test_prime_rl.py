"""prime-rl's custom loss: its published signature, and the loss against formulas written here."""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass, field
from types import ModuleType

import pytest
import torch
from torch import Tensor

from gft_kernels.integrations.prime_rl import policy_loss

SEQ = 12


# As prime-rl publishes them, in docs/algorithms.md and src/prime_rl/trainer/rl/loss.py.
@dataclass
class LossInputs:
    trainer_logprobs: Tensor
    inference_logprobs: Tensor
    ref_logprobs: Tensor | None
    advantages: Tensor
    loss_mask: Tensor
    loss_weights: Tensor | None = field(default=None)


@dataclass
class LossOutputs:
    loss: Tensor
    metrics: dict[str, Tensor]


@pytest.fixture(autouse=True)
def prime_rl(monkeypatch):
    """The module that the loss asks for its result's class."""
    names = ("prime_rl", "prime_rl.trainer", "prime_rl.trainer.rl", "prime_rl.trainer.rl.loss")
    for name in names:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules[names[-1]].LossOutputs = LossOutputs


def inputs(dtype: torch.dtype = torch.float64, weighted: bool = False) -> LossInputs:
    logprobs = (-3 * torch.rand(SEQ, dtype=dtype)).requires_grad_()
    mask = torch.arange(SEQ) % 3 > 0
    old = logprobs.detach() + 0.3 * torch.randn(SEQ, dtype=dtype)
    old[~mask] = torch.nan  # nothing outside the mask may be looked at
    weights = torch.rand(SEQ, dtype=dtype) if weighted else None
    return LossInputs(logprobs, old, None, torch.randn(SEQ, dtype=dtype), mask, weights)


def rectified(given, p, advantages, ratio):
    return -advantages * torch.where(p < 0.4, p, 1.0) * given.log()


def clipped(given, p, advantages, ratio):
    return -torch.minimum(ratio * advantages, ratio.clamp(0.9, 1.3) * advantages)


def weighted_by_ratio(given, p, advantages, ratio):
    return -ratio.detach().clamp(0, 1.5) * advantages * given.log()


FORMULAS = {  # of p with a gradient, p without, advantages, the ratio
    "sft": ({}, lambda given, p, advantages, ratio: -given.log()),
    "dft": ({}, lambda given, p, advantages, ratio: -p * given.log()),
    "gft": ({"tau": 0.4}, rectified),
    "reinforce": ({}, lambda given, p, advantages, ratio: -advantages * given.log()),
    "grpo": ({"clip_low": 0.1, "clip_high": 0.3}, clipped),
    "cispo": ({"clip_low": 1.0, "clip_high": 0.5}, weighted_by_ratio),
}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", FORMULAS)
def test_policy_loss_is_its_formula(name, weighted):
    numbers, formula = FORMULAS[name]
    given = inputs(weighted=weighted)
    expected = torch.zeros((), dtype=torch.float64)
    for t in range(SEQ):
        if given.loss_mask[t]:
            p = given.trainer_logprobs[t].exp()
            loss = formula(p, p.detach(), given.advantages[t], p / given.inference_logprobs[t].exp())
            expected = expected + loss * (given.loss_weights[t] if weighted else 1.0)
    (want,) = torch.autograd.grad(expected, given.trainer_logprobs)

    found = policy_loss(given, name, **numbers)
    assert isinstance(found, LossOutputs)
    (got,) = torch.autograd.grad(found.loss, given.trainer_logprobs)
    torch.testing.assert_close(found.loss.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_policy_loss_has_the_published_signature():
    given, *numbers = inspect.signature(policy_loss).parameters.values()
    assert given.kind is given.POSITIONAL_OR_KEYWORD  # called as custom_fn(inputs, **kwargs)
    assert all(number.default is not number.empty or number.kind is number.VAR_KEYWORD for number in numbers)


def test_policy_loss_reports_means_over_member_tokens():
    given = inputs()
    p = given.trainer_logprobs.detach()[given.loss_mask].exp()
    found = policy_loss(given, "gft", tau=0.4).metrics
    assert set(found) == {"nll", "mean_c", "rectified_fraction"}
    assert all(x.shape == () and not x.requires_grad for x in found.values())  # prime-rl stacks scalars
    assert found["nll"].item() == pytest.approx(-p.log().mean().item(), rel=1e-5)
    assert found["mean_c"].item() == pytest.approx(torch.where(p < 0.4, p, 1.0).mean().item(), rel=1e-5)
    assert found["rectified_fraction"].item() == pytest.approx((p < 0.4).double().mean().item())


def test_policy_loss_of_no_token_is_zero_with_a_graph():
    given = inputs()
    given.loss_mask[:] = False
    found = policy_loss(given)
    found.loss.backward()
    assert found.loss.item() == 0.0
    assert not given.trainer_logprobs.grad.any()
    assert not any(x.isnan() for x in found.metrics.values())


def test_policy_loss_adds_16_bit_logprobs_in_fp32():
    given = inputs(torch.bfloat16)
    assert policy_loss(given).loss.dtype == torch.float32


def test_policy_loss_refuses_what_there_is_not():
    with pytest.raises(ValueError, match="choose one of sft, dft, gft"):
        policy_loss(inputs(), "ppo")
    with pytest.raises(ValueError, match="the objective gft has tau"):
        policy_loss(inputs(), "gft", clip_eps=0.2)
