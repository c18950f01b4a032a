"""Checks of what `logits_policy_loss` is called with: the model's own head has run already."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .validation import LossArguments, check_dtype, check_loss, check_targets, check_tensor


def check_logits_loss(logits: Tensor, arguments: LossArguments) -> LossArguments:
    """The arguments of a loss on logits [N, V], checked, with targets as int64."""
    targets = _check_logits(logits, arguments)
    return check_loss(arguments._replace(targets=targets), logits, logits.shape[1])


def _check_logits(logits: Tensor, arguments: LossArguments) -> Tensor:
    """Refuse what the model's own head has done already. Of a head only the temperature is left."""
    head, backend = arguments.head, arguments.backend
    asked: dict[str, Any] = {"Head.bias": head.bias, "Head.softcap": head.softcap, "Backend.sparsity": backend.sparsity}
    asked |= {"Head.scale": None if head.scale == 1 else head.scale, "Head.low_rank": head.low_rank}
    if head.shard is not None:
        raise ValueError("Head.shard is for linear_policy_loss and linear_logprob: logits must be of the whole V.")
    for name, value in asked.items():
        if value is not None:
            raise ValueError(
                f"{name} = {value} but logits are given, and the model's head has run already: leave it out."
            )
    check_tensor("logits", logits, "its logits, [N, V]")
    if type(logits).__name__ == "DTensor":
        raise TypeError(
            "logits are a DTensor, a shard: the op must see the whole vocabulary. Where all ranks have the same data "
            "(tensor parallelism), pass logits.full_tensor()."
        )
    check_dtype("logits", logits)
    if logits.ndim != 2 or logits.shape[1] == 0:
        raise ValueError(
            f"logits have shape {tuple(logits.shape)}; they must be [N, V] with V > 0. "
            "Flatten batch and time: logits.flatten(0, -2)."
        )
    return check_targets(arguments.targets, logits)
