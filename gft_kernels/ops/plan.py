"""From the arguments of a call to a plan: which rows, which weights, which per-token constants."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..engines.contract import Engine, LossPlan, Scores
from ..head import Backend
from ..losses.advantages import GroupRewards
from ..losses.objectives import LossFunction, PerToken, Weighted, part
from ..losses.sequences import sequence_sums
from .validation import LossArguments


def make_plan(arguments: LossArguments, dtype: torch.dtype, engine: Engine) -> LossPlan:
    """The plan of a loss in the compute dtype. Waits for the device, to choose rows."""
    targets, objective, head, backend = arguments.targets, arguments.objective, arguments.head, arguments.backend
    valid = targets != head.ignore_index
    per_token = cast(constants(arguments, lambda groups: groups.per_token(valid, engine.group_advantages)), dtype)
    token_weights = arguments.token_weights
    if token_weights is None:
        token_weights = token_mean(valid, dtype)
    weights = torch.where(valid, token_weights.detach(), 0).to(dtype)
    rows = chosen(active_rows(valid, weights, per_token, objective, backend))
    if rows is not None:
        per_token, weights = part(per_token, rows), weights[rows]
    return LossPlan(targets, rows, head, backend, dtype, valid, weights, per_token, objective)


def token_mean(valid: Tensor, dtype: torch.dtype) -> Tensor:  # [N]
    """The default reduction: weights of the mean over the unmasked rows."""
    return valid.to(dtype) / valid.sum().clamp(min=1)


def constants(arguments: LossArguments, per_token: Callable[[GroupRewards], Tensor]) -> PerToken:
    """Per-token inputs [N], detached. Rewards become advantages by `per_token`."""
    given = {name: per_token(x) if isinstance(x, GroupRewards) else x for name, x in arguments.per_token.items()}
    return {name: None if x is None else x.detach() for name, x in given.items()}


def cast(per_token: PerToken, dtype: torch.dtype) -> PerToken:
    """Floats in `dtype`. Ids stay what they are."""
    return {name: x.to(dtype) if x is not None and x.is_floating_point() else x for name, x in per_token.items()}


def active_rows(
    valid: Tensor, weights: Tensor, per_token: PerToken, objective: LossFunction, backend: Backend
) -> Tensor:
    """Mask [N] of the rows the head must see."""
    if not backend.skip_rows:
        return valid
    active = valid & (weights != 0)
    if getattr(objective, "zero_at_zero_advantage", False):
        active = active & (per_token["advantages"] != 0)
    if isinstance(objective, Weighted):
        active = active & (per_token["importance_weights"] != 0)
    ids = per_token.get("sequence_ids")
    if ids is not None:  # every token of a sequence is part of the ratio of its active ones
        active = valid & (sequence_sums(active, ids) > 0)
    return active


def chosen(mask: Tensor) -> Tensor | None:
    """Indices of the True rows of a mask [N], ascending; None means all. Waits for the device."""
    rows = mask.nonzero().squeeze(1)
    return None if len(rows) == len(mask) else rows


def pick(values: Tensor, rows: Tensor | None) -> Tensor:
    """values[rows], where None means all rows."""
    return values if rows is None else values[rows]


def pick_scores(scores: Scores, rows: Tensor | None) -> Scores:
    """The scores of some rows, where None means all rows. The normaliser may be empty."""
    normaliser = scores.normaliser
    if rows is not None and normaliser.ndim == 2:
        normaliser = normaliser[:, rows]
    return Scores(pick(scores.logprobs, rows), pick(scores.entropy, rows), normaliser)
