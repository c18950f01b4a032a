"""From an engine's rows to what the caller sees."""

from __future__ import annotations

import torch
from torch import Tensor

from ..engines.contract import LossPlan, PlanResult, named, scatter
from ..head import PolicyLoss
from ..losses.objectives import LossFunction, Objective
from .plan import PerToken


def report(result: PlanResult, plan: LossPlan, valid: Tensor) -> PolicyLoss:
    """The result over all rows [N], with stats; refuses an objective that mixed rows."""
    if plan.head.validate and not getattr(plan.objective, "rowwise", False):
        _check_rowwise(plan, result.logprobs)
    skipped = torch.where(valid, torch.nan, 0.0).to(result.logprobs.dtype)  # what rows outside the plan report
    return PolicyLoss(
        result.loss,
        scatter(result.logprobs, plan.rows, skipped),
        scatter(result.entropy, plan.rows, skipped),
        scatter(result.coefficients, plan.rows, torch.zeros_like(skipped)),
        stats(
            plan.objective,
            result.logprobs,
            result.entropy,
            plan.per_token,
            torch.ones_like(result.logprobs, dtype=torch.bool),
            valid,
        )
        | named(result.sparsity),
    )


@torch.no_grad()
def _check_rowwise(plan: LossPlan, logprobs: Tensor) -> None:
    """A user's objective evaluated on every other row must give the losses it gives on all: [K]
    work, nothing over V.
    """
    whole = plan.objective(logprobs, **plan.per_token)
    for stripe in (slice(0, None, 2), slice(1, None, 2)):
        part = plan.objective(
            logprobs[stripe], **{name: None if x is None else x[stripe] for name, x in plan.per_token.items()}
        )
        if not torch.allclose(whole[stripe], part, equal_nan=True):
            raise ValueError(
                f"objective {plan.objective!r} mixes rows: its loss of a row changes with the other rows of the "
                "call. The fused pass "
                "sees rows in chunks, so use linear_logprob and write the loss on its logprobs."
            )


@torch.no_grad()
def stats(
    objective: LossFunction, logprobs: Tensor, entropy: Tensor, per_token: PerToken, seen: Tensor, valid: Tensor
) -> dict[str, Tensor]:
    """Means over the rows the head saw (0 if none) and the two counts, as device scalars: no
    synchronisation.
    """
    vectors = {"nll": -logprobs, "entropy": entropy}
    if isinstance(objective, Objective):
        vectors |= objective.metrics(logprobs, **per_token)
    count = seen.sum()
    means = {name: torch.where(seen, x, 0).sum() / count.clamp(min=1) for name, x in vectors.items()}
    return means | {"tokens": valid.sum(), "active_tokens": count}
