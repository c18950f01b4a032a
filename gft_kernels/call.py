"""From the arguments of a call to a plan, and from the plan's result to what the caller sees."""

from __future__ import annotations

import torch
from torch import Tensor

from .advantages import GroupRewards
from .head import Head, PolicyLoss, compute_dtype
from .objectives import LossFunction, Objective
from .plan import LossPlan, PlanResult, chosen, named, pick, scatter
from .validation import check_per_token, check_values

PerToken = dict[str, Tensor | None]
PER_TOKEN = ("advantages", "old_logprobs", "ref_logprobs")


def check_given(given: dict[str, Tensor | GroupRewards | None], hidden: Tensor, objective: LossFunction) -> None:
    """Refuse per-token inputs of the wrong shape or device, and objectives without what they need."""
    for name in getattr(objective, "needs", ()):
        if name not in given:
            raise ValueError(f"objective {objective!r} needs {name!r}; per-token inputs are {', '.join(PER_TOKEN)}.")
        if given[name] is None:
            raise ValueError(f"objective {objective!r} needs {name} [N]; none were given.")
    for name, vector in given.items():
        if vector is not None and not isinstance(vector, GroupRewards):
            check_per_token(name, vector, hidden)


def make_plan(
    logits_like: tuple[Tensor, Tensor], targets: Tensor, given: dict, token_weights: Tensor | None, objective: LossFunction, head: Head
) -> tuple[LossPlan, Tensor]:
    """The plan of a call and the mask [N] of its unmasked rows.

    `logits_like` is (hidden, weight), or the logits and their transpose. Waits for the device to check values (`Head.validate`), to
    choose rows, and to sort rewards into groups.
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


def active_rows(valid: Tensor, weights: Tensor, advantages: Tensor | None, objective: LossFunction, head: Head) -> Tensor:
    """Mask [N] of the rows the head must see."""
    active = valid
    if head.skip_rows:
        active = active & (weights != 0)
        if getattr(objective, "zero_at_zero_advantage", False):
            active = active & (advantages != 0)
    return active


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
        stats(plan.objective, result.logprobs, result.entropy, plan.per_token, torch.ones_like(result.logprobs, dtype=torch.bool), valid)
        | named(result.sparsity),
    )


@torch.no_grad()
def _check_rowwise(plan: LossPlan, logprobs: Tensor) -> None:
    """A user's objective evaluated on every other row must give the losses it gives on all: [K] work, nothing over V."""
    whole = plan.objective(logprobs, **plan.per_token)
    for stripe in (slice(0, None, 2), slice(1, None, 2)):
        part = plan.objective(logprobs[stripe], **{name: None if x is None else x[stripe] for name, x in plan.per_token.items()})
        if not torch.allclose(whole[stripe], part, equal_nan=True):
            raise ValueError(
                f"objective {plan.objective!r} mixes rows: its loss of a row changes with the other rows of the call. The fused pass "
                "sees rows in chunks, so use linear_logprob and write the loss on its logprobs."
            )


@torch.no_grad()
def stats(
    objective: LossFunction, logprobs: Tensor, entropy: Tensor, per_token: PerToken, seen: Tensor, valid: Tensor
) -> dict[str, Tensor]:
    """Means over the rows the head saw (0 if none) and the two counts, as device scalars: no synchronisation."""
    vectors = {"nll": -logprobs, "entropy": entropy}
    if isinstance(objective, Objective):
        vectors |= objective.metrics(logprobs, **per_token)
    count = seen.sum()
    means = {name: torch.where(seen, x, 0).sum() / count.clamp(min=1) for name, x in vectors.items()}
    return means | {"tokens": valid.sum(), "active_tokens": count}
