"""What a model does to its logits, found without the model: by its forward on a stand-in.

Where verl patches a model, weights may be on the meta device and attention may need a GPU. So the
model's own forward runs with a few numbers for a backbone and a small linear layer for a head, and
shows what it makes of what the head gives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...head import Head
from ..probe import find_transforms
from ..wrappers import THROUGH_LOGITS

PARTS = ("model", "lm_head")  # what verl's fused forwards call: self.model(...), self.lm_head.weight
WAY_OUT = "set actor_rollout_ref.model.use_fused_kernels=False"
BY_HAND = "Build Head(...) by hand from the model's forward, or "  # in messages of the probe: verl has no place for it
VOCABULARY, WIDTH = 64, 8


def transforms_of(model: Any, forward: Callable[..., Any]) -> Head:
    """Scale and soft cap that `forward`, the model's own, applies to what its head gives.

    Raises:
        ValueError: it applies something else, or changes the hidden states on their way to the
            head, or cannot be run on the stand-in.
        TypeError: the model has no `model` and `lm_head`.
    """
    name = type(model).__name__
    absent = [part for part in PARTS if part not in model._modules]
    if absent:
        raise TypeError(f"{name} has no {' and no '.join(absent)}, which verl's fused forward calls: {WAY_OUT}.")
    stand_in = _stand_in(model, forward)
    received: list[Tensor] = []
    stand_in.lm_head.register_forward_pre_hook(lambda _, inputs: received.append(inputs[0]))
    try:
        found = find_transforms(stand_in, stand_in.lm_head)
    except (TypeError, ValueError) as error:
        raise ValueError(str(error).replace(BY_HAND, "Then ").replace(THROUGH_LOGITS, WAY_OUT)) from error
    if not torch.equal(received[0], stand_in.model.given):
        raise ValueError(
            f"{name} changes its hidden states on their way to the head, and verl's fused forward does not: {WAY_OUT}."
        )
    return found


def _stand_in(model: Any, forward: Callable[..., Any]) -> Any:
    """The model's attributes and its own forward, but a table for a backbone and a small head."""
    table = _materialised(nn.Embedding(VOCABULARY, WIDTH, device="meta"))
    backbone = _in_place_of(model.model, _look_up, {"table": table})
    head = _materialised(nn.Linear(WIDTH, VOCABULARY, bias=False, device="meta"))

    def with_positions(self: Any, input_ids: Tensor, **kwargs: Any) -> Any:
        # As verl gives them to vision-language models, which insist on them. Others hand them on.
        positions = torch.arange(input_ids.shape[-1]).expand(4, *input_ids.shape)
        return forward(self, input_ids=input_ids, position_ids=positions, **kwargs)

    return _in_place_of(model, with_positions, {**model._modules, "model": backbone, "lm_head": head})


def _in_place_of(module: Any, forward: Callable[..., Any], parts: dict[str, nn.Module]) -> Any:
    """An object with the attributes of `module`, but with another forward and other parts."""
    cls = type(module)
    made: Any = object.__new__(type(cls.__name__, (cls,), {"forward": forward, "__module__": cls.__module__}))
    made.__dict__.update(vars(module), _modules=parts)
    return made


def _look_up(self: Any, input_ids: Tensor, **_: Any) -> _Output:
    """A backbone's forward: hidden states that depend on their own token alone."""
    self.given = self.table(input_ids)
    return _Output((self.given,))


class _Output(tuple):
    """What a backbone returns, as a tuple or by name; what is not there is None."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self[0] if name == "last_hidden_state" else None


def _materialised(layer: Any) -> Any:
    """Numbers in the layer's weight, not random ones, also where a context puts all on meta."""
    layer = layer.to_empty(device="cpu")
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(-1, 1, layer.weight.numel()).view_as(layer.weight))
    return layer
