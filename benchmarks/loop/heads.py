"""The heads that are put into the training step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gft_kernels import Head, PolicyLoss, linear_policy_loss

from ..heads.ours import eager_logprobs

Loss = Callable[..., object]  # called as gft_kernels.linear_policy_loss


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
        **unused: object,
    ) -> PolicyLoss:
        assert (head.bias, head.scale, head.softcap, head.temperature) == (None, 1.0, None, 1.0)
        rows = targets != head.ignore_index  # ours leaves masked rows out too
        logprobs = -token_losses(hidden[rows], weight, targets[rows])
        losses = objective(logprobs, advantages=advantages[rows], old_logprobs=None, ref_logprobs=None)
        stats = {"nll": -logprobs.detach().mean(), "active_tokens": rows.sum()}
        unknown = torch.zeros_like(token_weights)  # log-probs, entropies and coefficients, which nobody reads
        return PolicyLoss((token_weights[rows] * losses).sum(), unknown, unknown, unknown, stats)

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
