"""From the arguments of a call to a plan: which rows, which weights, which per-token constants."""

from __future__ import annotations

import torch
from torch import Tensor

from ..engines.contract import Engine, LossPlan
from ..head import Backend
from ..losses.advantages import GroupRewards
from ..losses.objectives import LossFunction, PerToken, part
from .validation import LossArguments


def make_plan(arguments: LossArguments, dtype: torch.dtype, engine: Engine) -> LossPlan:
    """The plan of a loss, in the compute dtype. Waits for the device to choose rows and to group rewards."""
    targets, objective, head, backend = arguments.targets, arguments.objective, arguments.head, arguments.backend
    valid = targets != head.ignore_index
    per_token = constants(arguments, valid, dtype, engine)
    token_weights = arguments.token_weights
    if token_weights is None:
        token_weights = valid.to(dtype) / valid.sum().clamp(min=1)
    weights = torch.where(valid, token_weights.detach(), 0).to(dtype)
    rows = chosen(active_rows(valid, weights, per_token["advantages"], objective, backend))
    if rows is not None:
        per_token, weights = part(per_token, rows), weights[rows]
    return LossPlan(targets, rows, head, backend, dtype, valid, weights, per_token, objective)


def constants(arguments: LossArguments, valid: Tensor, dtype: torch.dtype, engine: Engine) -> PerToken:
    """Per-token inputs [N], detached; rewards become advantages, once, on [B]."""
    given = {}
    for name, x in arguments.per_token.items():
        if isinstance(x, GroupRewards):
            x = x.per_token(valid, engine.group_advantages)
        given[name] = None if x is None else x.detach().to(dtype)
    return given


def active_rows(
    valid: Tensor, weights: Tensor, advantages: Tensor | None, objective: LossFunction, backend: Backend
) -> Tensor:
    """Mask [N] of the rows the head must see."""
    active = valid
    if backend.skip_rows:
        active = active & (weights != 0)
        if getattr(objective, "zero_at_zero_advantage", False):
            active = active & (advantages != 0)
    return active


def chosen(mask: Tensor) -> Tensor | None:
    """Places of the True rows of a mask [N], ascending, None for all: one wait for the device."""
    rows = mask.nonzero().squeeze(1)
    return None if len(rows) == len(mask) else rows


def pick(values: Tensor, rows: Tensor | None) -> Tensor:
    """values[rows], where None is all rows."""
    return values if rows is None else values[rows]
