"""A model, its parts and its own loss on a few tokens, with nothing left behind."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..engines.eager import head_logits
from ..head import Head, Operands
from .wrappers import THROUGH_LOGITS

LENGTH = 4


@torch.no_grad()
def verify(model: Any, backbone: nn.Module, layer: nn.Linear, head: Head) -> None:
    """Refuse a model whose own log-probs differ from those of the parts; warn of terms they lack.

    Raises:
        ValueError: the parts are not the model, or one of them cannot be run.
    """
    tokens = two_rows(len(layer.weight), layer.weight.device)
    with undisturbed(model, layer.weight.device):
        hidden = run(model, "its backbone", lambda: _hidden(backbone, layer.weight, tokens))
        output = run(model, "it", lambda: own_output(model, tokens))
    found = head_logits(Operands(hidden.flatten(0, 1), layer.weight, head.bias), head).unflatten(0, tokens.shape)
    _compare(model, found, output.logits, exact=is_exact(hidden, layer.weight, output.logits))
    warn_of_terms(model, output, tokens)


def two_rows(words: int, device: torch.device) -> Tensor:  # [2, LENGTH]
    """Tokens that differ in the last place, so that hidden states before it tell a causal model."""
    row = torch.arange(1, LENGTH + 1, device=device)
    return torch.stack([row, row + (row == LENGTH)]) % words


def _hidden(backbone: nn.Module, weight: Tensor, tokens: Tensor) -> Tensor:  # [2, LENGTH, D]
    hidden = _rows(backbone(input_ids=tokens, use_cache=False).last_hidden_state)
    if hidden.shape[2:] != weight.shape[1:] or hidden.device != weight.device:
        raise TypeError(
            f"its hidden states are {tuple(hidden.shape)} on {hidden.device}, its head's weight is "
            f"{tuple(weight.shape)} on {weight.device}"
        )
    return hidden


def own_output(model: Any, tokens: Tensor) -> Any:
    """What the model gives for tokens [2, LENGTH], with its own loss where it computes one."""
    try:
        output = model(input_ids=tokens, labels=tokens, use_cache=False)
    except Exception:  # some compute no loss of text alone, and then have no term to add to it
        output = model(input_ids=tokens, use_cache=False)
    _rows(output.logits)
    return output


def _rows(found: Any) -> Tensor:  # [2, LENGTH, ...]
    if not isinstance(found, Tensor) or found.shape[:2] != (2, LENGTH):
        shape = f"of shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"which is {type(found).__name__}"
        raise TypeError(f"it gives something {shape} for tokens of shape (2, {LENGTH})")
    return found


def run(model: Any, what: str, forward: Callable[[], Any]) -> Any:
    """The result of a forward; whatever it raises becomes one line that names the model."""
    try:
        return forward()
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(
            f"{type(model).__name__}: {what} could not be run on a few tokens as a transformers causal LM is "
            f"({reason}). Build Head(...) by hand from the model's forward, or {THROUGH_LOGITS}."
        ) from error


def is_exact(*tensors: Tensor) -> bool:
    """Whether everything was computed in fp32 or better."""
    autocast = torch.is_autocast_enabled(tensors[0].device.type)
    return not autocast and all(tensor.element_size() >= 4 for tensor in tensors)


def check_causal(name: str, hidden: Tensor) -> None:
    """Refuse a model whose hidden states depend on later tokens: those are its targets."""
    difference = (hidden[0].double() - hidden[1].double()).abs().amax(-1)  # [LENGTH]
    # Rows with equal pasts are equal bits, or nearly so where experts are computed in groups.
    if difference[:-1].max() > (1e-4 if is_exact(hidden) else 5e-2) * difference[-1]:
        raise ValueError(
            f"{name} is not causal: its hidden states depend on later tokens, so that a policy would "
            "be given its own targets. Load a causal LM (for some, config.is_decoder = True)."
        )


def _compare(model: Any, found: Tensor, own: Tensor, exact: bool) -> None:
    if own.shape != found.shape:
        raise ValueError(
            f"{type(model).__name__}: its logits have shape {tuple(own.shape)} and those of its head "
            f"{tuple(found.shape)}: {THROUGH_LOGITS}."
        )
    own = own.to(found.dtype)
    size = own.abs().amax((1, 2)).clamp(min=10.0) / 10  # rounding grows with the logits
    difference = ((found.log_softmax(-1) - own.log_softmax(-1)).abs().amax((1, 2)) / size).max().item()
    if not difference <= (1e-3 if exact else 0.25):
        raise ValueError(
            f"{type(model).__name__}: log-probs from its hidden states and head differ from its own by "
            f"{difference:.3g}. The architecture changes its logits in a way that is not known here: "
            f"build Head(...) by hand from the model's forward, or {THROUGH_LOGITS}."
        )


def warn_of_terms(model: Any, output: Any, tokens: Tensor, returned: Tensor | None = None) -> None:
    """Say what the model's own loss adds to the NLL and to the term that is `returned`."""
    own = getattr(output, "loss", None)
    if not isinstance(own, Tensor):
        return
    own = own if returned is None else own - returned
    logits = output.logits.to(torch.promote_types(own.dtype, torch.float32))
    for ahead in (1, 0):  # labels of some models are shifted already
        nll = F.cross_entropy(logits[:, : LENGTH - ahead].flatten(0, 1), tokens[:, ahead:].flatten())
        if (own - nll).abs() <= 4 * torch.finfo(own.dtype).eps * nll.clamp(min=1.0):
            return
    if returned is None and getattr(output, "aux_loss", None) is not None:
        term = "router balancing (see split_head for how to add it; config.output_router_logits = False leaves it out)"
    elif getattr(getattr(model, "config", None), "z_loss_coefficient", 0):
        term = "a penalty on the log-sum-exp of its logits (config.z_loss_coefficient)"
    elif any(hasattr(config, "orth_reg_weight") for config in getattr(model, "peft_config", {}).values()):
        term = "AdaLoRA's orthogonality penalty (orth_reg_weight of its config)"
    else:
        term = "a term of its own to the NLL, or reduces it in another way"
    warnings.warn(f"the own loss of {type(model).__name__} adds {term}; policy losses do not.", stacklevel=5)


@contextmanager
def undisturbed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Evaluate without compiling; modes and random numbers are as before afterwards."""
    modes = {module: module.training for module in model.modules()}
    devices = [device] if device.type == "cuda" else []
    compiled = any(hasattr(module, "_orig_mod") or module._compiled_call_impl is not None for module in modes)
    eager = torch.compiler.set_stance("force_eager") if compiled else nullcontext()  # importing dynamo takes seconds
    try:
        for module in modes:
            module.training = False  # and not model.eval(), which a model may have overridden
        with torch.random.fork_rng(devices), eager:
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
