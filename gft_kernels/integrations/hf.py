"""transformers: the loss inside a model's forward, or the model taken apart."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..head import Head
from .batch import PolicyBatch, num_items_weights, shift
from .fuse import fuse_loss
from .packing import Packed, pack
from .parts import find_backbone, find_head
from .probe import find_transforms
from .trainer import policy_trainer
from .verify import verify
from .wrappers import unwrapped

__all__ = [
    "HeadParts",
    "Packed",
    "PolicyBatch",
    "fuse_loss",
    "num_items_weights",
    "pack",
    "policy_trainer",
    "shift",
    "split_head",
]


class HeadParts(NamedTuple):
    """What `split_head` returns. Train on the weight itself: it is the model's own parameter."""

    backbone: nn.Module  # backbone(input_ids, attention_mask=...).last_hidden_state is [B, T, D]
    weight: Tensor  # [V, D], the live parameter
    head: Head  # with the model's bias and transforms


def split_head(model: Any, *, temperature: float = 1.0, ignore_index: int = -100) -> HeadParts:
    """Backbone, head weight and `Head` of a transformers causal LM.

    The parts are verified against the model's own logits, its transforms on raw logits up to 1e6. A
    model that would be trained wrongly is refused, with what to do in place of it.

    PEFT and torch.compile are taken off. Adapters stay in the layers of the backbone, and their
    gradients are those of the whole model. The backbone is not compiled. Refused by name are
    wrappers whose own forward has work to do: DistributedDataParallel, DataParallel, FSDP,
    DeepSpeed, accelerate's autocast, and the prompts of PEFT.

    The parts are those of now. Split again after anything that puts other parameters in place:
    resized embeddings, another active adapter with a head of its own, a sharding wrapper.

    Equivalent to::

        hidden = backbone(input_ids).last_hidden_state  # [B, T, D]
        logits = hidden @ weight.T  # [B, T, V], then the transforms of `head`: what model(input_ids) gives

    A term that the model's own loss adds to the NLL is not in the parts, and a warning names it.
    Router balancing of a mixture of experts is added so, at the price of one row of logits::

        output = model(input_ids, output_router_logits=True, output_hidden_states=True, logits_to_keep=1)
        hidden = output.hidden_states[-1]  # in place of the backbone's
        loss = policy_loss + model.router_aux_loss_coef * output.aux_loss

    Args:
        model: a PreTrainedModel with a linear output embedding, perhaps in PEFT or torch.compile.
        temperature: the sampling temperature that the log-probs are to be taken at.
        ignore_index: the target value that marks a masked row.

    Returns:
        HeadParts(backbone, weight, head). weight [V, D] and head.bias [V] are the live parameters,
        so gradients reach the model.

    Raises:
        TypeError: a wrapper that must not be bypassed, no causal LM, or a head that is not a plain
            linear layer (LoRA on the head, which `fuse_loss` takes; quantised heads).
        ValueError: the model's logits differ from the head's, or weights are not there (sharded,
            meta device).

    Cost: two forwards of the model and one of the backbone on eight tokens. Modes, gradients and
    the state of random numbers are left as they were.
    """
    bare = unwrapped(model)
    layer = find_head(bare)
    backbone = find_backbone(bare)
    head = replace(find_transforms(bare, layer), bias=layer.bias, ignore_index=ignore_index)
    verify(model, backbone, layer, head)
    return HeadParts(backbone, layer.weight, replace(head, temperature=temperature))
