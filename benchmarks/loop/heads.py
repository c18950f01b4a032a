"""The heads that are put into the training step."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor

from gft_kernels import Head, linear_policy_loss

from ..heads.ours import eager_logprobs

Loss = Callable[..., object]  # called as gft_kernels.linear_policy_loss; an object with .loss and .stats


def peer(token_losses: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Loss:
    """In place of linear_policy_loss: a head's per-token losses, with the objective on top."""

    def loss(
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        advantages: Tensor,
        *,
        objective: Callable[..., Tensor],
        token_weights: Tensor,
        head: Head,
        backend: object,
    ) -> SimpleNamespace:
        assert (head.bias, head.scale, head.softcap, head.temperature) == (None, 1.0, None, 1.0)
        logprobs = -token_losses(hidden, weight, targets)
        losses = objective(logprobs, advantages=advantages, old_logprobs=None, ref_logprobs=None)
        stats = {"nll": -logprobs.detach().mean(), "active_tokens": torch.tensor(len(targets))}
        return SimpleNamespace(loss=(token_weights * losses).sum(), stats=stats)

    return loss


def eager() -> Loss:
    """Full logits, as a transformers model computes them."""
    return peer(lambda hidden, weight, targets: -eager_logprobs(hidden, weight, targets))


def liger() -> Loss:
    from liger_kernel.ops import LigerFusedLinearScaledCrossEntropyFunction

    return peer(LigerFusedLinearScaledCrossEntropyFunction.apply)


HEADS: dict[str, Callable[[], Loss]] = {
    "eager": eager,  # the others are held to it
    "gft-kernels": lambda: linear_policy_loss,
    "liger": liger,
}


def available() -> list[str]:
    """Heads that can be imported here; says why another cannot."""
    found = []
    for name, load in HEADS.items():
        try:
            load()
            found.append(name)
        except Exception as error:  # a package's import runs its own code, which may fail in any way
            print(f"skipped {name}: {type(error).__name__}: {error}")
    return found
