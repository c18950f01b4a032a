"""Checks of the ops' inputs. An error names the value found and the way out.

Shapes, dtypes and devices are known on the host; values are on the device and are all looked at in
one wait for it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..head import Head
from ..losses.advantages import GroupRewards
from ..losses.objectives import LossFunction

PER_TOKEN = ("advantages", "old_logprobs", "ref_logprobs")


def check_head_inputs(hidden: Tensor, weight: Tensor, targets: Tensor, head: Head) -> Tensor:
    """Validate shapes, dtypes and devices of hidden [N, D], weight [V, D], targets [N], the bias;
    returns targets as int64.
    """
    if head.bias is not None and (head.bias.ndim != 1 or head.bias.shape[0] != weight.shape[0]):
        raise ValueError(f"Head.bias has shape {tuple(head.bias.shape)}; it must be [V] = ({weight.shape[0]},).")
    for name, tensor in (("hidden", hidden), ("weight", weight), ("Head.bias", head.bias)):
        if tensor is None:
            continue
        if type(tensor).__name__ == "DTensor":
            raise TypeError(
                f"{name} is a DTensor (sharded by FSDP2 or tensor parallelism): pass {name}.full_tensor() "
                "so that the op sees the whole vocabulary."
            )
        if not tensor.is_floating_point() or tensor.element_size() < 2:
            raise TypeError(f"{name} has dtype {tensor.dtype}: float64, float32, float16 and bfloat16 are supported.")
        if tensor.device != hidden.device:
            raise ValueError(f"{name} is on {tensor.device} but hidden is on {hidden.device}: move them to one device.")
    if hidden.ndim != 2:
        raise ValueError(
            f"hidden has shape {tuple(hidden.shape)}; it must be [N, D]. Flatten batch and time: hidden.flatten(0, -2)."
        )
    if weight.ndim != 2 or weight.numel() == 0:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}; it must be [V, D] and not empty. A ZeRO-3 or FSDP shard must be "
            "gathered first (deepspeed.zero.GatheredParameters, FSDP.summon_full_params)."
        )
    if hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"hidden is {tuple(hidden.shape)} and weight {tuple(weight.shape)}: their last dimension D must agree."
        )
    return check_targets(targets, hidden)


def check_logits(logits: Tensor, targets: Tensor, head: Head) -> Tensor:
    """Validate logits [N, V] and targets [N], and that the head asks for nothing but a temperature;
    returns targets as int64.
    """
    for name, plain in (("bias", None), ("scale", 1.0), ("softcap", None), ("sparsity", None)):
        if getattr(head, name) is not plain and getattr(head, name) != plain:
            raise ValueError(
                f"Head.{name} = {getattr(head, name)} but logits are given, and the model's head has run already: "
                "leave it out."
            )
    if type(logits).__name__ == "DTensor":
        raise TypeError(
            "logits are a DTensor (sharded): pass logits.full_tensor() so that the op sees the whole vocabulary."
        )
    if not logits.is_floating_point() or logits.element_size() < 2:
        raise TypeError(f"logits have dtype {logits.dtype}: float64, float32, float16 and bfloat16 are supported.")
    if logits.ndim != 2 or logits.shape[1] == 0:
        raise ValueError(
            f"logits have shape {tuple(logits.shape)}; they must be [N, V] with V > 0. Flatten batch and time: "
            "logits.flatten(0, -2)."
        )
    return check_targets(targets, logits)


def check_given(given: dict[str, Tensor | GroupRewards | None], hidden: Tensor, objective: LossFunction) -> None:
    """Refuse per-token inputs of the wrong shape or device, and objectives without what they need."""
    for name in getattr(objective, "needs", ()):
        if name not in given:
            raise ValueError(f"objective {objective!r} needs {name!r}; per-token inputs are {', '.join(PER_TOKEN)}.")
        if given[name] is None:
            raise ValueError(f"objective {objective!r} needs {name} [N]; none were given.")
    for name, vector in given.items():
        if vector is not None and not isinstance(vector, GroupRewards):
            check_per_token(name, vector, hidden)


def check_targets(targets: Tensor, hidden: Tensor) -> Tensor:
    """Validate that targets are integers [N] on hidden's device; returns them as int64."""
    check_per_token("targets", targets, hidden)
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise TypeError(f"targets have dtype {targets.dtype}; they must be integers (token ids).")
    return targets.long()


def check_per_token(name: str, tensor: Tensor, hidden: Tensor) -> None:
    """Validate that `tensor` is [N] on hidden's device."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} is {type(tensor).__name__}; it must be a tensor [N].")
    if tensor.shape != hidden.shape[:1]:
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)}; it must be [N] = ({hidden.shape[0]},), one value a row of "
            "hidden. "
            "Flatten it, and expand a value per sequence with values[sequence_ids]."
        )
    if tensor.device != hidden.device:
        raise ValueError(f"{name} is on {tensor.device} but hidden is on {hidden.device}: move them to one device.")


def check_values(targets: Tensor, size: int, head: Head, vectors: dict[str, Tensor | None] | None = None) -> None:
    """Refuse targets outside 0..size-1, and NaN in per-token floats where the target is not masked.

    Waits for the device once; `Head.validate` turns it off.
    """
    for name, vector in (vectors or {}).items():
        if vector is not None and not vector.is_floating_point():
            raise TypeError(f"{name} has dtype {vector.dtype}; it must be floating point.")
    if not head.validate:
        return
    valid = targets != head.ignore_index
    bad = {"targets": valid & ((targets < 0) | (targets >= size))}
    bad |= {name: valid & vector.isnan() for name, vector in (vectors or {}).items() if vector is not None}
    counts = torch.stack([mask.sum() for mask in bad.values()]).tolist()
    for (name, mask), count in zip(bad.items(), counts, strict=True):
        if not count:
            continue
        row = int(mask.nonzero()[0])
        if name == "targets":
            raise ValueError(
                f"targets[{row}] = {int(targets[row])} is outside the vocabulary 0..{size - 1} (V = {size} columns "
                "of logits); "
                f"{count} such rows. Mask a token with ignore_index = {head.ignore_index}, or check that tokenizer "
                "and head match."
            )
        raise ValueError(
            f"{name}[{row}] is NaN ({count} such rows with an unmasked target). Find the reward or log-prob "
            "that failed, or mask those rows with ignore_index."
        )
