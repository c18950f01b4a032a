"""The reference policy: the one that KL is measured from, which does not learn."""

from __future__ import annotations

import copy
from typing import Any, Protocol

import torch
from torch import Tensor

from gft_kernels.integrations.hf import PolicyBatch

from .layers import evaluating
from .policy import Policy


class Reference(Protocol):
    """Log-probs of a policy that stays as it is."""

    def logprobs(self, tokens: Tensor, mask: Tensor | None, targets: Tensor, **inputs: Any) -> Tensor:
        """[B, T-1] log p of the targets of tokens [B, T], and 0 where a target is masked.

        Arguments are those of `Policy.loss`. No logits [B, T, V] are formed, and no graph is kept.
        """


def make_reference(policy: Policy, other: Policy | None = None) -> Reference:
    """The policy as it is now, or another one.

    With LoRA the model without its factors is the one that the run began with, at any time and for
    no memory. Otherwise this is a copy: call it before the first update. A run that goes on has
    another policy by then, so that `other` must be loaded from where the run began.

    Cost: the weights once more, unless the policy has LoRA and no `other` is given.
    """
    if other is not None:
        return Frozen(other)
    return Base(policy) if policy.adapter is not None else Frozen(copy.deepcopy(policy))


class Frozen:
    """A policy of its own, which is nobody else's."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        policy.model.requires_grad_(False).eval()

    def logprobs(self, tokens: Tensor, mask: Tensor | None, targets: Tensor, **inputs: Any) -> Tensor:
        return _logprobs(self.policy, tokens, mask, targets, inputs)


class Base:
    """The model under a policy's LoRA."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def logprobs(self, tokens: Tensor, mask: Tensor | None, targets: Tensor, **inputs: Any) -> Tensor:
        assert self.policy.adapter is not None
        with self.policy.adapter.disable_adapter(), evaluating(self.policy.model):
            return _logprobs(self.policy, tokens, mask, targets, inputs)


@torch.no_grad()
def _logprobs(policy: Policy, tokens: Tensor, mask: Tensor | None, targets: Tensor, inputs: dict[str, Any]) -> Tensor:
    return policy.loss(tokens, mask, PolicyBatch(targets), **inputs).logprobs
