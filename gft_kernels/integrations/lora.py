"""LoRA on the head: what PEFT's layer adds to the base layer's logits, as a `LowRank`.

    result = base_layer(x) + sum over active adapters of scaling * lora_B(lora_A(dropout(x)))

lora_A and dropout are called as the modules that they are, so that their dropout is PEFT's own. Of
lora_B only weight and bias are used. PEFT is not imported: its layer is known by name.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..head import LowRank
from .wrappers import THROUGH_LOGITS

LAYER = "peft.tuners.lora.layer.Linear"


def is_lora(layer: Any) -> bool:
    """Whether a layer is PEFT's LoRA of a linear layer, with the forward of PEFT."""
    had: Any = getattr(type(layer), "_had", type(layer))  # the class that `fuse_loss` exchanged
    for base in had.__mro__:
        if f"{base.__module__}.{base.__qualname__}" == LAYER:
            return had.forward is base.forward and "forward" not in vars(layer)
    return False


def base_of(layer: Any) -> Any:
    """The layer inside PEFT's.

    Raises:
        TypeError: an active adapter adds something else than a low-rank product, or a part that is
            not called as a module has work of its own to do when it is.
    """
    for name in acting(layer):
        variant = layer.lora_variant.get(name)
        if variant is not None:
            raise TypeError(
                f"the PEFT adapter {name!r} on the head is {type(variant).__name__}, which adds more than a low-rank "
                "product: use plain LoRA (rslora too) there, leave the head out of target_modules, or "
                f"{THROUGH_LOGITS}."
            )
    for part in (layer.base_layer, *(layer.lora_B[name] for name in acting(layer))):
        if "forward" in vars(part) or part._forward_hooks or part._forward_pre_hooks:
            raise TypeError(
                f"a part of the head's LoRA layer, {type(part).__name__}, has hooks or a forward of its own, "
                "which would not run: shard or offload the head as a whole, or "
                f"{THROUGH_LOGITS}."
            )
    return layer.base_layer


def acting(layer: Any) -> list[str]:
    """Names of the adapters that a call adds now: none where they are disabled or merged."""
    if layer.disable_adapters or layer.merged:
        return []
    return [name for name in layer.active_adapters if name in layer.lora_A]


def operands_of(
    layer: Any,
    hidden: Tensor,  # [B, T, D]
) -> tuple[Tensor, Tensor | None, LowRank | None]:
    """(weight [V, D], bias [V], low-rank addition) of a head with LoRA or without.

    The rank is the sum of the acting adapters' ranks.

    Cost: the products of lora_A, 2NDr. Several adapters copy their [V, r] side by side.
    """
    if not hasattr(layer, "lora_A"):
        return layer.weight, layer.bias, None
    if layer.disable_adapters and layer.merged:
        layer.unmerge()  # as PEFT's own forward does
    base, hiddens, weights = layer.base_layer, [], []
    bias = base.bias
    for name in acting(layer):
        a, b, scaling = layer.lora_A[name], layer.lora_B[name], layer.scaling[name]
        hidden = layer._cast_input_dtype(hidden, a.weight.dtype)
        hiddens.append((a(layer.lora_dropout[name](hidden)) * scaling).flatten(0, -2))
        weights.append(b.weight)
        if b.bias is not None:
            bias = b.bias * scaling if bias is None else bias + b.bias * scaling
    if not hiddens:
        return base.weight, bias, None
    factors = (x[0] if len(x) == 1 else torch.cat(x, 1) for x in (hiddens, weights))
    return base.weight, bias, LowRank(*factors)
