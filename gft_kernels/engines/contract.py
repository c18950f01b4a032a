"""What an engine is handed, with inputs validated and rows chosen, and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..head import Backend, Head, Operands
from ..losses.advantages import GroupRewards
from ..losses.objectives import LossFunction, PerToken
from .accumulate import Gradients, Wanted


@dataclass(frozen=True, eq=False)
class Plan:
    """Which rows the head sees, and how. K is their number."""

    targets: Tensor  # [N] int64
    rows: Tensor | None  # [K] chosen rows in ascending order, None for all
    head: Head
    backend: Backend
    dtype: torch.dtype  # of logits, statistics and sums


@dataclass(frozen=True, eq=False)
class LossPlan(Plan):
    """A plan with what a fused loss needs beside it. The chosen rows are the active ones."""

    valid: Tensor  # [N] bool, the unmasked rows
    weights: Tensor  # [K] w_t, in `dtype`
    per_token: PerToken  # [K] each, floats in `dtype`
    objective: LossFunction


class Scores(NamedTuple):
    """Per-row results of the softmax."""

    logprobs: Tensor  # [K]
    entropy: Tensor  # [K]
    normaliser: Tensor  # [2, K] offset m and log sum exp(z - m); empty where no backward needs it


class Upstream(NamedTuple):
    """Gradients that reach log p and entropy."""

    logprobs: Tensor  # [K]
    entropy: Tensor | None  # [K], None is 0


class LossRows(NamedTuple):
    """What a fused loss found: its value, and the rows of the plan, detached."""

    loss: Tensor  # scalar
    logprobs: Tensor  # [K]
    entropy: Tensor  # [K]
    coefficients: Tensor  # [K]
    sparsity: Tensor | None = None  # the numbers of sparse_report.NAMES, where columns may be left out


class Engine(Protocol):
    """The head on one kind of device. A new engine is one module with these names.

    `recorded` says who differentiates. True: autograd records the engine's own operations, and
    `loss` and `logits_loss` return no gradients (eager). False: the engine runs without autograd,
    forms gradients itself, and has the methods of `GradientEngine` too.
    """

    name: str
    recorded: bool

    def group_advantages(self, groups: GroupRewards) -> Tensor:
        """[B] advantages of the responses, as `GroupRewards.per_sequence`."""

    def score(self, operands: Operands, plan: Plan) -> Scores:
        """Log-probs and entropies of the plan's rows."""

    def loss(self, operands: Operands, plan: LossPlan, wanted: Wanted) -> tuple[LossRows, Gradients | None]:
        """The fused loss, and its gradients for an upstream gradient of 1."""

    def logits_loss(self, logits: Tensor, plan: LossPlan, grad: Tensor | None) -> tuple[LossRows, Tensor | None]:
        """The fused loss from logits [N, V]. Returns its rows, and the unit of the gradient.

        The gradient, divided by the unit (None is 1), goes into `grad` [N, V]. `grad` may be the
        logits. Rows outside the plan get 0.
        """


class GradientEngine(Engine, Protocol):
    """What an engine has besides when `recorded` is False."""

    def score_gradients(
        self, operands: Operands, plan: Plan, scores: Scores, upstream: Upstream, wanted: Wanted
    ) -> Gradients:
        """Recompute the plan's rows and add up the gradients of an upstream gradient."""

    def scale_(self, values: Tensor, scale: Tensor) -> None:
        """values [N, V] times a scalar on the device, in place, rounded once."""
