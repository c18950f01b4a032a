"""What is checked: four losses that together use every part of the engines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..head import Head
from ..losses.advantages import GroupRewards
from ..losses.objectives import gft, reinforce
from ..losses.ratios import grpo, kl
from ..ops.linear_logprob import linear_logprob
from ..ops.linear_policy_loss import linear_policy_loss
from .problem import Problem


def policy_loss(p: Problem, backend: str, advantages: Tensor | GroupRewards, **options: Any) -> tuple[Tensor, Tensor]:
    """Loss and log-probs of the fused loss."""
    given = {"token_weights": p.token_weights, "backend": backend, **options}
    return linear_policy_loss(p.hidden, p.weight, p.targets, advantages, **given)[:2]


def gft_rewards(p: Problem, backend: str) -> tuple[Tensor, Tensor]:
    """GFT on group rewards, the default of the package."""
    return policy_loss(p, backend, GroupRewards(p.rewards, p.group_ids, p.sequence_ids), objective=gft(0.7))


def grpo_kl(p: Problem, backend: str) -> tuple[Tensor, Tensor]:
    """A clipped ratio and a penalty, with old and reference log-probs."""
    given = {"objective": grpo(0.2, 0.2) + kl(0.05), "old_logprobs": p.old, "ref_logprobs": p.ref}
    return policy_loss(p, backend, p.rewards[p.sequence_ids] - 0.5, **given)


def transformed(p: Problem, backend: str) -> tuple[Tensor, Tensor]:
    """Every transform of a head but the scale."""
    head = Head(bias=p.bias, softcap=8.0, temperature=0.9)
    return policy_loss(p, backend, p.rewards[p.sequence_ids] - 0.5, objective=reinforce(), head=head)


def logprob_entropy(p: Problem, backend: str) -> tuple[Tensor, Tensor]:
    """The log-prob op with an upstream gradient on both outputs."""
    out = linear_logprob(p.hidden, p.weight, p.targets, backend=backend)
    slope = p.rewards[p.sequence_ids] - 0.5
    return (p.token_weights * slope * (out.logprobs - 0.3 * out.entropy)).sum(), out.logprobs.detach()


CASES: dict[str, Callable[[Problem, str], tuple[Tensor, Tensor]]] = {
    "gft, group rewards": gft_rewards,
    "grpo + kl": grpo_kl,
    "bias, softcap, temperature": transformed,
    "log p and entropy": logprob_entropy,
}


def results(case: str, problem: Problem, backend: str, dtype: torch.dtype | None = None) -> list[Tensor]:
    """Loss, log p, dhidden and dweight of a case."""
    leaves = problem.leaves(dtype)
    loss, logprobs = CASES[case](leaves, backend)
    loss.backward()
    assert leaves.hidden.grad is not None
    assert leaves.weight.grad is not None
    return [loss.detach(), logprobs, leaves.hidden.grad, leaves.weight.grad]
