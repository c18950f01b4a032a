"""Losses whose rows depend on their whole sequence: the log-probs first, then the gradient.

An engine forms the gradient of a chunk before it has seen the next, which such a loss does not
allow. So one pass scores the rows, the objective is taken on [K], and what it wants of every
log-prob is the upstream gradient of a second pass.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from ..engines.accumulate import Gradients, Wanted
from ..engines.contract import GradientEngine, LossPlan, LossRows, Upstream
from ..head import Operands
from ..losses.objectives import PER_TOKEN, losses_and_coefficients, sft
from .plan import chosen, pick, pick_scores


def loss(
    engine: GradientEngine, operands: Operands, plan: LossPlan, wanted: Wanted
) -> tuple[LossRows, Gradients | None]:
    """`engine.loss` of an objective by sequence."""
    scores = engine.score(operands, plan)
    found, upstream = _whole(plan, scores.logprobs, scores.entropy)
    # Rows of a clipped sequence want nothing. Ranks of a shard must take the same rows: all.
    rows = None
    if plan.head.shard is None:
        rows = chosen(upstream != 0) if any(wanted) else plan.targets.new_empty(0)
    live = pick_scores(scores, rows)
    at = plan.rows if rows is None else rows if plan.rows is None else plan.rows[rows]
    return found, engine.score_gradients(
        operands, replace(plan, rows=at), live, Upstream(pick(upstream, rows), None), wanted
    )


def logits_loss(
    engine: GradientEngine, logits: Tensor, plan: LossPlan, grad: Tensor | None
) -> tuple[LossRows, Tensor | None]:
    """`engine.logits_loss` of an objective by sequence."""
    plain = replace(plan, objective=sft(), per_token=dict.fromkeys(PER_TOKEN))
    scores, _ = engine.logits_loss(logits, plain, None)
    found, upstream = _whole(plan, scores.logprobs, scores.entropy)
    if grad is None:
        return found, None
    return found, engine.logits_loss(logits, replace(plain, weights=-upstream), grad)[1]


def _whole(plan: LossPlan, logprobs: Tensor, entropy: Tensor) -> tuple[LossRows, Tensor]:
    """The loss of all rows [K] at once, and its derivative by each log-prob."""
    losses, coefficients = losses_and_coefficients(plan.objective, logprobs, plan.per_token)

    def weighted(logprobs: Tensor, **per_token: Any) -> Tensor:
        return plan.weights * plan.objective(logprobs, **per_token)

    _, upstream = losses_and_coefficients(weighted, logprobs, plan.per_token)
    return LossRows((plan.weights * losses).sum(), logprobs, entropy, coefficients), upstream
