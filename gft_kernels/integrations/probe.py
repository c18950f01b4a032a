"""A model's logit transforms, found by looking: what its own forward makes of given raw logits.

    z = scale * raw, or softcap * tanh(scale * raw / softcap)

The head's output is replaced by raw logits from 1e-3 to 1e6 of either sign. The slope at the small
ones is the scale, the plateau of the large ones the soft cap, and all of them must lie on that
curve. Names in a config do not tell: some classes have the field and do not apply it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..head import Head
from .verify import undisturbed
from .wrappers import THROUGH_LOGITS

SMALLEST, LARGEST = 1e-3, 1e6


@torch.no_grad()
def find_transforms(model: Any, layer: nn.Linear) -> Head:
    """Scale and soft cap that `model` applies to what its head `layer` gives.

    Raises:
        ValueError: it applies something else, or cannot be run on a few tokens.

    Cost: one forward of the model on eight tokens.
    """
    device = layer.weight.device
    tokens = torch.arange(1, 9, device=device).view(2, 4) % layer.out_features
    seen: list[Tensor] = []

    def replaced(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        seen.append(_raw_logits(output))
        return seen[-1]

    handle = layer.register_forward_hook(replaced, prepend=True)  # other hooks are transforms too
    try:
        with undisturbed(model, device):
            logits = model(input_ids=tokens, use_cache=False).logits
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(
            f"{type(model).__name__} could not be run on a few tokens as a transformers causal LM is ({reason}): "
            f"{THROUGH_LOGITS}."
        ) from error
    finally:
        handle.remove()
    if len(seen) != 1 or not isinstance(logits, Tensor) or logits.shape != seen[0].shape:
        raise ValueError(
            f"{type(model).__name__} calls its head {len(seen)} times in a forward, or changes the shape of its "
            f"logits: {THROUGH_LOGITS}."
        )
    return _fit(type(model).__name__, seen[0].flatten().double(), logits.flatten())


def _raw_logits(like: Tensor) -> Tensor:
    """Amplitudes in even ratios, the signs in turn, each exact in bf16: some models round there."""
    at = torch.arange(like.numel(), dtype=torch.float64, device=like.device)
    steps = min(max(like.numel() // 2, 2), 361)
    values = SMALLEST * (LARGEST / SMALLEST) ** (at % steps / (steps - 1))
    signs = 1 - 2 * (at // steps % 2)
    return (values * signs).bfloat16().to(torch.float32).view(like.shape)


def _fit(name: str, raw: Tensor, logits: Tensor) -> Head:
    """The curve through (raw, logits), or a refusal that says how far they lie from one."""
    found = logits.double()
    small, large = raw.abs() < 10 * SMALLEST, raw.abs() > LARGEST / 10
    plateau, slope = found[large].abs().median().item(), (found[small] / raw[small]).median().item()
    softcap = plateau if 0 < plateau < LARGEST / 100 * abs(slope) else None
    if softcap is None:
        scale, curve = slope, slope * raw
    else:
        scale = (softcap * torch.atanh(found[small] / softcap) / raw[small]).median().item()
        curve = softcap * torch.tanh(scale * raw / softcap)
    off = ((found - curve).abs() / curve.abs()).max().item()
    if not off <= 16 * torch.finfo(logits.dtype).eps + 1e-5:
        raise ValueError(
            f"{name} changes its logits in a way that is not known here: with scale {scale:.6g} and soft cap {softcap} "
            f"they are {100 * off:.3g}% off. Then {THROUGH_LOGITS}."
        )
    # Found in fp32, so of seven digits; the model's own number has no more.
    return Head(scale=float(f"{scale:.7g}"), softcap=None if softcap is None else float(f"{softcap:.7g}"))
