"""transformers: take a causal language model apart into its backbone, its head's weight and the
head's transforms.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..engines.eager import head_logits
from ..head import Head, Operands


class HeadParts(NamedTuple):
    backbone: nn.Module  # backbone(input_ids, attention_mask=...).last_hidden_state is [B, T, D]
    weight: Tensor  # [V, D], the live parameter
    head: Head  # with the model's bias and transforms


def split_head(model: Any, *, temperature: float = 1.0, **options) -> HeadParts:
    """Backbone, head weight and `Head` of a transformers causal LM, checked against the model's own
    logits.

    Equivalent to `model(input_ids).logits == head(backbone(input_ids).last_hidden_state @
    weight.T)`, which is verified on four tokens, so that an architecture whose transforms are not
    known here is refused rather than trained wrongly.

    Args:
        model: a PreTrainedModel with a linear output embedding, not wrapped by FSDP or DeepSpeed.
        temperature: the sampling temperature the log-probs are to be taken at.
        options: further fields of `Head`.

    Raises:
        TypeError: the output embedding is not a plain linear layer (LoRA on the head, quantised
            heads).
        ValueError: the model's logits differ from the head's.
    """
    layer = model.get_output_embeddings()
    if type(layer) is not nn.Linear:
        raise TypeError(
            f"the model's head is {type(layer).__name__}, not nn.Linear: its weight alone does not give the logits. "
            "Merge an adapter on "
            "the head first (model.merge_and_unload()), leave lm_head out of the adapter's target modules, or "
            "dequantise the head."
        )
    backbone = model.base_model if model.base_model is not model else model.get_decoder()
    scale, softcap = _transforms(model.config)
    _verify(model, backbone, layer, Head(bias=layer.bias, scale=scale, softcap=softcap))
    return HeadParts(
        backbone, layer.weight, Head(bias=layer.bias, scale=scale, softcap=softcap, temperature=temperature, **options)
    )


def _transforms(config) -> tuple[float, float | None]:
    """(scale, softcap) from a config: Granite and MiniCPM3 divide by logits_scaling, HyperCLOVA X
    multiplies, Cohere has logit_scale, Falcon-H1 lm_head_multiplier, Gemma final_logit_softcapping.
    """
    scale = float(getattr(config, "logit_scale", None) or 1.0) * float(
        getattr(config, "lm_head_multiplier", None) or 1.0
    )
    scaling = getattr(config, "logits_scaling", None)
    if scaling:
        scale *= scaling if "hyperclova" in config.model_type else 1 / scaling
    return scale, getattr(config, "final_logit_softcapping", None)


@torch.no_grad()
def _verify(model: Any, backbone: nn.Module, layer: nn.Linear, head: Head) -> None:
    tokens = torch.arange(1, 5, device=layer.weight.device)[None] % layer.weight.shape[0]
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        expected = model(input_ids=tokens, use_cache=False).logits[0].float()
        hidden = backbone(input_ids=tokens, use_cache=False).last_hidden_state[0]
    finally:
        for module, mode in modes.items():
            module.training = mode
    found = head_logits(Operands(hidden, layer.weight, head.bias), head)
    difference = (found.log_softmax(-1) - expected.log_softmax(-1)).abs().max().item()
    if not difference <= (1e-3 if layer.weight.dtype == torch.float32 else 0.25):
        raise ValueError(
            f"{type(model).__name__}: log-probs from its hidden states and head differ from its own by "
            f"{difference:.3g}. The architecture "
            "changes its logits in a way that is not known here; build Head(...) by hand from the model's forward."
        )
