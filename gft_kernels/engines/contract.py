"""What an engine is handed, inputs validated and rows chosen, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from ..head import Head, LogProbs
from ..losses.advantages import GroupRewards
from ..losses.objectives import LossFunction
from .accumulate import Gradients

Wanted = tuple[bool, bool, bool]  # whether gradients of hidden, weight and bias are wanted


@dataclass(frozen=True, eq=False)
class LossPlan:
    """One call of the fused loss, apart from hidden, weight and bias."""

    targets: Tensor  # [N] int64
    rows: Tensor | None  # [K] active rows in ascending order, None for all
    weights: Tensor  # [K] w_t of the active rows, compute dtype
    per_token: dict[str, Tensor | None]  # [K] each, compute dtype
    objective: LossFunction
    head: Head
    groups: GroupRewards | None = None  # where the advantages came from: an engine may normalise them itself


class Scores(NamedTuple):
    """Per-row results of the softmax, detached."""

    logprobs: Tensor  # [K]
    entropy: Tensor  # [K]
    normaliser: Tensor  # [2, K] offset m and log sum exp(z - m), or empty where the engine's backward does not need it


SPARSITY = ("sparse_columns", "sparse_exact", "sparse_dropped_max", "sparse_dropped_mean", "sparse_error")


class PlanResult(NamedTuple):
    loss: Tensor  # scalar
    logprobs: Tensor  # [K] detached
    entropy: Tensor  # [K] detached
    coefficients: Tensor  # [K] detached
    sparsity: Tensor | None = None  # the numbers of SPARSITY, where columns may have been left out


@dataclass(frozen=True)
class Engine:
    """The streaming head on one kind of device: functions without autograd, over chosen rows.

    score(hidden, weight, bias, targets [N], head, rows) -> Scores [K]. score_gradients(hidden,
    weight, bias, targets, head, rows, scores, (grad_logprobs, grad_entropy or None) [K], wanted) ->
    Gradients. loss(hidden, weight, bias, plan, wanted) -> (PlanResult, Gradients for an upstream
    gradient of 1). logits_loss(logits [N, V], plan, grad [N, V] or None) -> (PlanResult, unit): the
    gradient over `unit` into `grad`, 0 at other rows. scale_(values [N, V], scalar): in place.
    """

    name: str
    score: Callable[[Tensor, Tensor, Tensor | None, Tensor, Head, Tensor | None], Scores]
    score_gradients: Callable[..., Gradients]
    loss: Callable[[Tensor, Tensor, Tensor | None, LossPlan, Wanted], tuple[PlanResult, Gradients]]
    logits_loss: Callable[[Tensor, LossPlan, Tensor | None], tuple[PlanResult, Tensor | None]]
    scale_: Callable[[Tensor, Tensor], None]


@dataclass(frozen=True)
class Backend:
    """The differentiable functions behind the public ops.

    linear_logprob(hidden, weight, targets, head) -> LogProbs [N], differentiable, 0 at masked rows.
    policy_loss(hidden, weight, plan) -> PlanResult over the plan's active rows, loss
    differentiable. logits_loss(logits, plan, inplace) -> the same from logits [N, V] that exist
    already.
    """

    name: str
    linear_logprob: Callable[[Tensor, Tensor, Tensor, Head], LogProbs]
    policy_loss: Callable[[Tensor, Tensor, LossPlan], PlanResult]
    logits_loss: Callable[[Tensor, LossPlan, bool], PlanResult]


def chosen(mask: Tensor) -> Tensor | None:
    """Indices of the True rows of a mask [N], ascending, None for all: one wait for the device."""
    rows = mask.nonzero().squeeze(1)
    return None if len(rows) == len(mask) else rows


def pick(values: Tensor, rows: Tensor | None) -> Tensor:
    """values[rows], where None is all rows."""
    return values if rows is None else values[rows]


def scatter(values: Tensor, rows: Tensor | None, base: Tensor) -> Tensor:
    """values at `rows` of a copy of `base` [N]; None is all rows."""
    return values if rows is None else base.index_copy(0, rows, values)


def named(sparsity: Tensor | None) -> dict[str, Tensor]:
    """The report of what was left out by name, detached scalars; empty where nothing can be left
    out.
    """
    return {} if sparsity is None or not len(sparsity) else dict(zip(SPARSITY, sparsity.unbind(), strict=True))
