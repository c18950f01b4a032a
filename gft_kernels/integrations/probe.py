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
from .verify import check_causal, run, two_rows, undisturbed
from .wrappers import THROUGH_LOGITS

SMALLEST, LARGEST = 1e-3, 1e6


@torch.no_grad()
def find_transforms(model: Any, layer: nn.Linear) -> Head:
    """Scale and soft cap that `model` applies to what its head `layer` gives.

    Raises:
        ValueError: it applies something else, is not causal or finite, or cannot be run on a few
            tokens.

    Cost: one forward of the model on eight tokens.
    """
    device = layer.weight.device
    tokens = two_rows(layer.out_features, device)
    seen: list[tuple[Tensor, Tensor, Tensor]] = []  # hidden states, their logits, and those in place of them

    def replaced(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        seen.append((inputs[0], output, _raw_logits(output)))
        return seen[-1][2]

    handle = layer.register_forward_hook(replaced, prepend=True)  # other hooks are transforms too
    try:
        with undisturbed(model, device):
            logits = run(model, "it", lambda: model(input_ids=tokens, use_cache=False).logits)
    finally:
        handle.remove()
    name = type(model).__name__
    if len(seen) != 1:
        raise ValueError(f"{name} calls its head {len(seen)} times in a forward: {THROUGH_LOGITS}.")
    ((hidden, own, raw),) = seen
    found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if hidden.shape[:-1] != tokens.shape or found != tuple(raw.shape):
        raise ValueError(
            f"{name} calls its head on hidden states of shape {tuple(hidden.shape)} for tokens {tuple(tokens.shape)}, "
            f"and gives logits {found} of its {tuple(raw.shape)}: {THROUGH_LOGITS}."
        )
    if not own.isfinite().all():
        raise ValueError(f"{name}: its logits are not finite: look for NaN or infinite weights.")
    check_causal(name, hidden)
    return _fit(name, raw.flatten().double(), logits.flatten())


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
