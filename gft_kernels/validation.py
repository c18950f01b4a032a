"""Checks of the ops' inputs. An error names the value found and the way out."""

from __future__ import annotations

import torch
from torch import Tensor

from .head import Head


def check_head_inputs(hidden: Tensor, weight: Tensor, targets: Tensor, head: Head) -> Tensor:
    """Validate hidden [N, D], weight [V, D], targets [N], the bias; returns targets as int64."""
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
        raise ValueError(f"hidden has shape {tuple(hidden.shape)}; it must be [N, D]. Flatten batch and time: hidden.flatten(0, -2).")
    if weight.ndim != 2 or weight.numel() == 0:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}; it must be [V, D] and not empty. A ZeRO-3 or FSDP shard must be "
            "gathered first (deepspeed.zero.GatheredParameters, FSDP.summon_full_params)."
        )
    if hidden.shape[1] != weight.shape[1]:
        raise ValueError(f"hidden is {tuple(hidden.shape)} and weight {tuple(weight.shape)}: their last dimension D must agree.")
    check_per_token("targets", targets, hidden)
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise TypeError(f"targets have dtype {targets.dtype}; they must be integers (token ids).")
    targets = targets.long()
    if head.validate:
        size = weight.shape[0]
        outside = (targets != head.ignore_index) & ((targets < 0) | (targets >= size))
        if outside.any():
            row = int(outside.nonzero()[0])
            raise ValueError(
                f"targets[{row}] = {int(targets[row])} is outside the vocabulary 0..{size - 1} (V = {size} rows of weight); "
                f"{int(outside.sum())} such rows. Mask a token with ignore_index = {head.ignore_index}, "
                "or check that tokenizer and head match."
            )
    return targets


def check_per_token(name: str, tensor: Tensor, hidden: Tensor) -> None:
    """Validate that `tensor` is [N] on hidden's device."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} is {type(tensor).__name__}; it must be a tensor [N].")
    if tensor.shape != hidden.shape[:1]:
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)}; it must be [N] = ({hidden.shape[0]},), one value a row of hidden. "
            "Flatten it, and expand a value per sequence with values[sequence_ids]."
        )
    if tensor.device != hidden.device:
        raise ValueError(f"{name} is on {tensor.device} but hidden is on {hidden.device}: move them to one device.")


def check_floats(name: str, tensor: Tensor, live: Tensor) -> None:
    """Validate that a per-token float input has no NaN in the rows that are used."""
    if not tensor.is_floating_point():
        raise TypeError(f"{name} has dtype {tensor.dtype}; it must be floating point.")
    bad = live & tensor.isnan()
    if bad.any():
        row = int(bad.nonzero()[0])
        raise ValueError(
            f"{name}[{row}] is NaN ({int(bad.sum())} such rows with an unmasked target). Find the reward or log-prob "
            "that failed, or mask those rows with ignore_index."
        )
