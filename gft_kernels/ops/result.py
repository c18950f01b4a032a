"""From an engine's rows to what the caller sees."""

from __future__ import annotations

import torch
from torch import Tensor

from ..engines.contract import LossPlan, LossRows
from ..engines.sparse_report import named
from ..head import PolicyLoss
from ..losses.objectives import LossFunction, Objective, PerToken, part


def report(found: LossRows, plan: LossPlan) -> PolicyLoss:
    """The result over all rows [N], with stats. Refuses an objective that mixed rows."""
    if plan.backend.validate and not getattr(plan.objective, "rowwise", False):
        _check_rowwise(plan, found.logprobs)
    skipped = torch.where(plan.valid, torch.nan, 0.0).to(plan.dtype)  # what rows outside the plan report
    seen = torch.ones_like(found.logprobs, dtype=torch.bool)
    numbers = stats(plan.objective, found.logprobs, found.entropy, plan.per_token, seen, plan.valid)
    return PolicyLoss(
        found.loss,
        scatter(found.logprobs, plan.rows, skipped),
        scatter(found.entropy, plan.rows, skipped),
        scatter(found.coefficients, plan.rows, torch.zeros_like(skipped)),
        numbers if found.sparsity is None else numbers | named(found.sparsity),
    )


def scatter(values: Tensor, rows: Tensor | None, base: Tensor) -> Tensor:
    """A copy of `base` [N] with `values` at `rows`, where None means all rows."""
    return values if rows is None else base.index_copy(0, rows, values)


@torch.no_grad()
def _check_rowwise(plan: LossPlan, logprobs: Tensor) -> None:
    """A caller's objective must give the same losses again, also on every other row: [K] work."""
    whole, again = (plan.objective(logprobs, **plan.per_token) for _ in range(2))
    parted = torch.empty_like(whole)
    for stripe in (slice(0, None, 2), slice(1, None, 2)):
        parted[stripe] = plan.objective(logprobs[stripe], **part(plan.per_token, stripe))
    pairs = (whole.nan_to_num() == again.nan_to_num(), torch.isclose(whole, parted, equal_nan=True))
    same, rowwise = torch.stack([x.all() for x in pairs]).tolist()  # one wait for the device
    if not same:
        raise ValueError(
            f"objective {plan.objective!r} is random: called twice on the same rows it gave other losses. It is called "
            "more than once, so draw the numbers outside and hand them in as advantages, old_logprobs or ref_logprobs."
        )
    if not rowwise:
        raise ValueError(
            f"objective {plan.objective!r} mixes rows: its loss of a row changes with the other rows of the call. "
            "The fused pass sees rows in chunks, so use linear_logprob and write the loss on its logprobs."
        )


@torch.no_grad()
def stats(
    objective: LossFunction, logprobs: Tensor, entropy: Tensor, per_token: PerToken, seen: Tensor, valid: Tensor
) -> dict[str, Tensor]:
    """Means over the rows the head saw (NaN if none), and two counts.

    They are scalars on the device, so nothing waits for it.
    """
    vectors = {"nll": -logprobs, "entropy": entropy}
    if isinstance(objective, Objective):
        vectors |= objective.metrics(logprobs, **per_token)
    count = seen.sum()
    means = {name: torch.where(seen, x, 0).sum() / count for name, x in vectors.items()}
    return means | {"tokens": valid.sum(), "active_tokens": count}
