"""The reference policy: the one that KL is measured from, which does not learn."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Protocol

from .groups import Member
from .logprobs import token_logprobs
from .model.policy import Policy
from .settings.config import TrainConfig


class Reference(Protocol):
    """A policy that stays as it is."""

    def logprobs(self, members: Sequence[Member], config: TrainConfig) -> list[list[float]]:
        """log p of every response token: see `token_logprobs`. No logits [B, T, V] are formed."""


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
        policy.model.requires_grad_(False)

    def logprobs(self, members: Sequence[Member], config: TrainConfig) -> list[list[float]]:
        return token_logprobs(self.policy, members, config)


class Base:
    """The model under a policy's LoRA."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def logprobs(self, members: Sequence[Member], config: TrainConfig) -> list[list[float]]:
        with self.policy.adapter.disable_adapter():
            return token_logprobs(self.policy, members, config)
