"""From the arguments of a call to a plan: which rows, which weights, which per-token constants."""

from __future__ import annotations

import torch
from torch import Tensor

from ..engines.contract import LossPlan, chosen, pick
from ..head import Head, compute_dtype
from ..losses.advantages import GroupRewards
from ..losses.objectives import LossFunction
from .validation import check_values

PerToken = dict[str, Tensor | None]


def make_plan(
    logits_like: tuple[Tensor, Tensor],
    targets: Tensor,
    given: dict,
    token_weights: Tensor | None,
    objective: LossFunction,
    head: Head,
) -> tuple[LossPlan, Tensor]:
    """The plan of a call and the mask [N] of its unmasked rows.

    `logits_like` is (hidden, weight), or the logits and their transpose. Waits for the device to
    check values (`Head.validate`), to choose rows, and to sort rewards into groups.
    """
    dtype, valid = compute_dtype(*logits_like), targets != head.ignore_index
    groups = given["advantages"] if isinstance(given["advantages"], GroupRewards) else None
    if groups is not None:
        given = given | {"advantages": groups.per_token(valid)}
    if token_weights is None:
        token_weights = valid.to(dtype) / valid.sum().clamp(min=1)
    check_values(targets, len(logits_like[1]), head, given | {"token_weights": token_weights})
    given = {name: None if x is None else x.detach().to(dtype) for name, x in given.items()}
    weights = torch.where(valid, token_weights.detach(), 0).to(dtype)
    active = active_rows(valid, weights, given["advantages"], objective, head)
    rows = chosen(active)
    per_token = {name: None if x is None else pick(x, rows) for name, x in given.items()}
    return LossPlan(targets, rows, pick(weights, rows), per_token, objective, head, groups), valid


def active_rows(
    valid: Tensor, weights: Tensor, advantages: Tensor | None, objective: LossFunction, head: Head
) -> Tensor:
    """Mask [N] of the rows the head must see."""
    active = valid
    if head.skip_rows:
        active = active & (weights != 0)
        if getattr(objective, "zero_at_zero_advantage", False):
            active = active & (advantages != 0)
    return active
