"""How the layers of a model compute in gradient passes: dropout, and what is computed twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer


def set_mode(model: PreTrainedModel, dropout: bool) -> None:
    """Prepare gradient passes, with the model's dropout or without.

    Without it the model is in eval mode, as when it samples. So whatever a model does at random, or
    in another way, in training mode alone is off: dropout of modules, of functions and in
    attention, layers that are dropped, noise of routers.
    """
    model.train(dropout)
    for layer in _layers(model):
        if layer.gradient_checkpointing:
            layer.training = True  # transformers looks at it; `_recomputed` sets it right inside


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode; every module is in its own mode again afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def checkpoint_layers(model: PreTrainedModel, dropout: bool) -> None:
    """Let every layer keep its input alone, and compute the rest again in the backward pass.

    Raises:
        ValueError: the model's layers cannot do it.
    """
    layers = list(_layers(model))
    if not layers:
        raise ValueError(
            f"{type(model).__name__} has no layers that can be computed again (GradientCheckpointingLayer): leave "
            "--checkpointing out."
        )
    for layer in layers:
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = partial(_recomputed, layer, dropout)


def _layers(model: nn.Module) -> Iterator[Any]:
    return (module for module in model.modules() if isinstance(module, GradientCheckpointingLayer))


def _recomputed(layer: nn.Module, dropout: bool, run: Callable[..., Any], *args: Any) -> Any:
    """A layer's forward, in the mode that its parts are in."""

    def forward(*args: Any) -> Any:
        before, layer.training = layer.training, dropout
        try:
            return run(*args)
        finally:
            layer.training = before

    # Non-reentrant: the reentrant one has no gradient where no input has one, as with frozen
    # embeddings. Random numbers are drawn again as they were.
    return checkpoint(forward, *args, use_reentrant=False)


def refuse_unsuitable(model: PreTrainedModel, dropout: bool) -> None:
    """Refuse what the mode of the model would spoil.

    Raises:
        ValueError: dropout is asked for and the model has none, or the model is an RWKV that
            divides its weights in eval mode.
    """
    if dropout and not list(randomness(model.config.to_dict())):
        raise ValueError("--dropout would do nothing: the model's config has no dropout above 0. Leave it out.")
    if any(getattr(module, "layers_are_rescaled", None) is not None for module in model.modules()) and (
        model.config.rescale_every > 0
    ):
        raise ValueError(
            f"rescale_every is {model.config.rescale_every} in the model's config: it divides weights in place where "
            "it samples, and they would be saved so. Set it to 0 in config.json, which changes no result in float32."
        )


def randomness(config: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Entries of a config that make training forwards random, such as attention_dropout."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from randomness(value, f"{prefix}{name}.")
        elif isinstance(value, float) and value > 0 and any(part in name for part in ("drop", "jitter")):
            yield prefix + name
