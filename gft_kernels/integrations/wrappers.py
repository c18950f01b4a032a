"""What a model may come wrapped in: taken off where nothing is lost, refused by name elsewhere.

Wrappers are known by the names of their classes, so that none of their libraries is imported.
"""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

# The way out of every refusal: the wrapper's own forward runs, and the op gets what it returns.
THROUGH_LOGITS = "call `logits_policy_loss` on the logits of model(...), which is exact however the model is wrapped"

# A wrapper: why its inside must not be called past it, and what to do besides THROUGH_LOGITS.
_AVERAGE = "split the inner model and average every p.grad over the processes before the optimiser's step"
_GATHERS = "gathers weights and reduces gradients in calls of the wrapper alone"
REFUSED = {
    "DistributedDataParallel": ("averages gradients in calls of the wrapper alone", _AVERAGE),
    "DataParallel": ("copies the model to its GPUs in calls of the wrapper alone", "split model.module, on one GPU"),
    "FullyShardedDataParallel": (_GATHERS, None),
    "FSDPModule": (_GATHERS, None),
    "DeepSpeedEngine": ("reduces gradients, and under ZeRO-3 gathers weights, in its own steps alone", None),
}
# Methods of PEFT that do something in the wrapper's forward, which a backbone would go past.
OUTSIDE_THE_LAYERS = {"XLORA", "POLY", "SHADOW"}


def unwrapped(model: Any) -> Any:
    """The transformers model inside torch.compile and PEFT; adapters stay in its layers.

    Raises:
        TypeError: not a model, or a wrapper whose own forward has work to do.
        ValueError: weights that are not there: sharded, empty, or on the meta device.
    """
    if isinstance(model, type):
        raise TypeError(
            f"model is the class {model.__name__}: give a loaded model, {model.__name__}.from_pretrained()."
        )
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {model!r:.60}: give a loaded model, AutoModelForCausalLM.from_pretrained(...).")
    _refuse_wrappers(model)
    _refuse_absent_weights(model)
    if "_original_forward" in vars(model):
        raise TypeError(
            "accelerate has put autocast around this model's forward, and the backbone would be called past it: give "
            "accelerator.unwrap_model(model, keep_fp32_wrapper=False) and call the backbone under "
            "accelerator.autocast(), or " + THROUGH_LOGITS + "."
        )
    if _is_a(model, "OptimizedModule"):
        warnings.warn(
            "the backbone that split_head returns is not compiled: compile it alone, torch.compile(parts.backbone).",
            stacklevel=3,
        )
        return unwrapped(model._orig_mod)
    if _is_a(model, "PeftModel", "PeftMixedModel"):
        _refuse_peft_methods(model)
        tuner: Any = model.base_model
        return unwrapped(tuner.model)  # the tuner's: get_base_model() is not on every kind
    return model


def model_inside(model: Any) -> Any:
    """The transformers model inside data-parallel wrappers, torch.compile and PEFT, sharded or not.

    Raises:
        TypeError: not a model, or a wrapper in which a loss in the head would be wrong.
    """
    if isinstance(model, type) or not isinstance(model, nn.Module):
        return unwrapped(model)  # refuses it
    if "forward" in vars(model):
        refuse_liger(model, vars(model)["forward"])
        raise TypeError(
            f"the forward of this {type(model).__name__} is replaced already (accelerator.prepare does so): call "
            "fuse_loss before."
        )
    if _is_a(model, "DataParallel"):
        raise TypeError(
            "the model is wrapped in DataParallel, which copies it in every call: use DistributedDataParallel, or fuse "
            "model.module on one GPU."
        )
    if _is_a(model, "FullyShardedDataParallel"):
        raise TypeError(
            "the model is wrapped in FullyShardedDataParallel already, and its weights are there in calls of the "
            "wrapper alone: call fuse_loss before, or use fully_shard (FSDP2)."
        )
    if _is_a(model, "DeepSpeedEngine"):
        raise TypeError(
            f"the model is in DeepSpeed, where a loss in the head has not been tried: use fully_shard (FSDP2), or "
            f"{THROUGH_LOGITS}."
        )
    if _is_a(model, "DistributedDataParallel"):
        return model_inside(model.module)
    if _is_a(model, "OptimizedModule"):
        return model_inside(model._orig_mod)
    if _is_a(model, "PeftModel", "PeftMixedModel"):
        _refuse_peft_methods(model)
        configs: Any = model.peft_config
        for name, config in configs.items():
            if hasattr(config, "orth_reg_weight"):
                raise TypeError(
                    f"the PEFT adapter {name!r} (AdaLoRA) adds a penalty to the loss of the model's output, which a "
                    f"PolicyLoss is not: {THROUGH_LOGITS}."
                )
        tuner: Any = model.base_model
        return model_inside(tuner.model)
    return model


def refuse_liger(model: Any, forward: Any) -> None:
    """Liger's forward put into an instance goes past the one that `fuse_loss` gave its class."""
    if getattr(forward, "__module__", "").startswith("liger_kernel"):
        raise TypeError(
            f"Liger gives this {type(model).__name__} a forward with a loss of its own. Keep its layers alone: "
            "apply_liger_kernel_to_...(model=model, fused_linear_cross_entropy=False), or for a Trainer, "
            'TrainingArguments(use_liger_kernel=True, liger_kernel_config={"fused_linear_cross_entropy": False}).'
        )


def _is_a(module: Any, *names: str) -> bool:
    return any(base.__name__ in names for base in type(module).__mro__)


def _refuse_wrappers(model: nn.Module) -> None:
    """At any depth: a wrapper around the backbone alone synchronises half of the gradients."""
    for place, module in model.named_modules():
        for name, (why, way) in REFUSED.items():
            if _is_a(module, name):
                raise TypeError(
                    f"{f'model.{place}' if place else 'the model'} is wrapped in {name}, which {why}, and the parts "
                    f"would be called past it: {f'{way}, or ' if way else ''}{THROUGH_LOGITS}."
                )


def _refuse_absent_weights(model: nn.Module) -> None:
    for name, weight in model.named_parameters():
        if weight.is_meta:
            raise ValueError(
                f"{name} is on the meta device and holds no numbers: load the model with from_pretrained(...) onto one "
                "device, without offloading."
            )
        sharded = _is_a(weight, "DTensor") or _is_a(weight.data, "DTensor")
        if sharded or weight.numel() == 0:
            found = "a DTensor" if sharded else "empty"
            raise ValueError(
                f"{name} is {found}: the model is sharded (FSDP, ZeRO-3 or tensor parallelism), and a copy gathered "
                f"once would go stale. Give a whole model, or {THROUGH_LOGITS}."
            )


def _refuse_peft_methods(model: Any) -> None:
    for name, config in model.peft_config.items():
        method = getattr(config.peft_type, "value", str(config.peft_type))
        if config.is_prompt_learning:
            why = "puts virtual tokens before the text"
        elif method in OUTSIDE_THE_LAYERS or getattr(config, "alora_invocation_tokens", None):
            why = "acts in the wrapper's forward"
        else:
            continue
        raise TypeError(
            f"the PEFT adapter {name!r} ({method}) {why}, which the backbone alone would leave out: {THROUGH_LOGITS}."
        )
