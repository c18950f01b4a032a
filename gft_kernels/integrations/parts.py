"""Where a transformers model keeps its backbone and its head layer."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .lora import base_of, is_lora
from .wrappers import THROUGH_LOGITS


def find_backbone(model: Any) -> nn.Module:
    """The module that gives the last hidden states.

    Raises:
        TypeError: there is none that can be called by itself.
    """
    config = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        raise TypeError(
            f"{_name(model)} is an encoder-decoder, whose hidden states need the encoder's input too: {THROUGH_LOGITS}."
        )
    if getattr(config, "return_dict", True) is False:
        raise TypeError(f"{_name(model)} returns tuples: set model.config.return_dict = True.")
    backbone = getattr(model, "base_model", model)
    if backbone is model and hasattr(model, "get_decoder"):
        backbone = model.get_decoder()
    if backbone is model or not isinstance(backbone, nn.Module):
        raise TypeError(f"{_name(model)} has no backbone apart from its head that could be found: {THROUGH_LOGITS}.")
    return backbone


def find_head(model: Any, *, inside: bool = False) -> nn.Linear:
    """The layer whose weight gives the logits, as it is used now.

    `inside` is for whoever runs in the layer's forward: its weight may be a shard, and it may be
    PEFT's LoRA of a linear layer.

    Raises:
        TypeError: there is none, or its weight alone does not give the logits.
    """
    layer = _output_embeddings(model)
    wrapper = type(layer).__name__
    if wrapper == "ModulesToSaveWrapper":  # PEFT trains a whole copy of the head for each adapter
        active = layer.active_adapters
        kept = active and not layer.disable_adapters and active[0] in layer.modules_to_save
        layer = layer.modules_to_save[active[0]] if kept else layer.original_module
    if inside and type(layer).__name__ == "FullyShardedDataParallel":  # FSDP1, around the head alone
        layer = layer.module
    if not is_lora(layer):
        _check_linear(layer, inside)
    elif inside:
        _check_linear(base_of(layer), inside)
    else:
        raise TypeError(
            "the model's head has LoRA, which adds to the logits of its weight: use fuse_loss, which takes it along. "
            f"{_way_out(layer)}, or {THROUGH_LOGITS}."
        )
    return layer


def _check_linear(layer: Any, inside: bool) -> None:
    """Refuse a layer whose weight alone does not give its output, or does not train."""
    had = getattr(type(layer), "_had", type(layer))  # the class that `fuse_loss` exchanged
    # A sharding wrapper puts a subclass there, which leaves the forward as it was.
    is_linear = had is nn.Linear or (inside and isinstance(layer, nn.Linear) and had.forward is nn.Linear.forward)
    if not is_linear or "forward" in vars(layer):
        kind = f"{type(layer).__module__}.{type(layer).__name__}"
        raise TypeError(
            f"the model's head is {kind}, not nn.Linear: its weight alone does not give the logits. "
            f"{_way_out(layer)}, or {THROUGH_LOGITS}."
        )
    if any(hasattr(layer.weight, mark) for mark in ("ds_id", "_hp_mapping")):  # of ZeRO-3, and of ZeRO-1 and 2
        raise TypeError(f"the model is in DeepSpeed, where the loss was not tried: {THROUGH_LOGITS}; or use FSDP2.")
    if not (inside and _is_shard(layer.weight)) and not _is_plain(layer.weight):
        raise TypeError(
            f"the weight of the model's head is {type(layer.weight).__name__} of {layer.weight.dtype}, not a parameter "
            f"in 16 bits or more: {_way_out(layer)}, or {THROUGH_LOGITS}."
        )


def _output_embeddings(model: Any) -> Any:
    # Of the class: some wrappers pass every attribute of the model inside through.
    if not hasattr(type(model), "get_output_embeddings"):
        inner = next((name for name, m in model.named_modules() if hasattr(type(m), "get_output_embeddings")), None)
        raise TypeError(
            f"{_name(model)} is not a transformers model (it has no get_output_embeddings of its own): "
            + (
                "call `linear_policy_loss` on its hidden states."
                if inner is None
                else f"give model.{inner}, if {_name(model)} does nothing but hold it, or {THROUGH_LOGITS}."
            )
        )
    try:
        layer = model.get_output_embeddings()
    except NotImplementedError:  # transformers' answer for models that have no text to give out
        layer = None
    if layer is None:
        raise TypeError(
            f"{_name(model)} has no language-model head: load it with AutoModelForCausalLM.from_pretrained(...)."
        )
    return layer


def _way_out(layer: nn.Module) -> str:
    """What to do about a head that is not a plain linear layer."""
    if hasattr(layer, "base_layer") or hasattr(layer, "token_adapter"):
        return "Leave the head out of the adapter's target modules, or merge the adapter (model.merge_and_unload())"
    if not _is_plain(getattr(layer, "weight", None)):
        return "Load the model with a head that is neither quantised nor parametrised"
    return "Put an nn.Linear in its place, where it does no more than that"


def _is_plain(weight: Any) -> bool:
    """A parameter that trains: quantised ones are integers, 8 bits, or of a class of their own."""
    return type(weight) is nn.Parameter and weight.is_floating_point() and weight.element_size() > 1


def _is_shard(weight: Any) -> bool:
    """FSDP2's, or a view into the flat parameter that FSDP1 has gathered."""
    return hasattr(weight, "placements") or (type(weight) is Tensor and _is_plain(nn.Parameter(weight)))


def _name(model: Any) -> str:
    return type(model).__name__
