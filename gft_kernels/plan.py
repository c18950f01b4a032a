"""What a backend is handed: inputs already validated, rows already chosen. A backend knows nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .head import Head, LogProbs
from .objectives import LossFunction


def compute_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """Dtype of logits, statistics and accumulators: fp64 if an input is, else fp32."""
    return torch.float64 if torch.float64 in (hidden.dtype, weight.dtype) else torch.float32


@dataclass(frozen=True, eq=False)
class LossPlan:
    """One call of the fused loss, apart from hidden, weight and bias."""

    targets: Tensor  # [N] int64
    rows: Tensor | None  # [K] active rows in ascending order, None for all
    weights: Tensor  # [K] w_t of the active rows, compute dtype
    per_token: dict[str, Tensor | None]  # [K] each, compute dtype
    objective: LossFunction
    head: Head


class PlanResult(NamedTuple):
    loss: Tensor  # scalar, differentiable
    logprobs: Tensor  # [K] detached
    entropy: Tensor  # [K] detached
    coefficients: Tensor  # [K] detached


@dataclass(frozen=True)
class Backend:
    """The two functions a backend provides.

    linear_logprob(hidden, weight, targets, head) -> LogProbs [N], differentiable, 0 at masked rows.
    policy_loss(hidden, weight, plan) -> PlanResult over the plan's active rows.
    """

    name: str
    linear_logprob: Callable[[Tensor, Tensor, Tensor, Head], LogProbs]
    policy_loss: Callable[[Tensor, Tensor, LossPlan], PlanResult]
