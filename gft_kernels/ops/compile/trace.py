"""What the public ops do in a program that is being compiled: custom ops, and everything on [N]
traced around them.

An objective that is a function of the caller's is traced like any other code, on the log-prob op
(2NDV + 6KDV, N the unmasked rows); that it does not mix rows is not checked there. Outside a
compiled program the same engines run under autograd.Function, which scales the gradients in place.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...engines import eager
from ...engines.contract import named
from ...head import Head, LogProbs, PolicyLoss, compute_dtype
from ...losses.advantages import GroupRewards
from ...losses.objectives import LossFunction
from ..plan import PerToken, active_rows
from ..result import stats
from . import custom_ops


def linear_logprob(hidden: Tensor, weight: Tensor, targets: Tensor, head: Head, backend: str) -> LogProbs:
    """`linear_logprob` in a program that is being compiled; eager is traced as it stands."""
    if backend == "eager":
        return eager.linear_logprob(hidden, weight, targets, head)
    return LogProbs(*custom_ops.linear_logprob(hidden, weight, targets, head, backend))


def policy_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    given: dict,
    token_weights: Tensor | None,
    objective: LossFunction,
    head: Head,
    backend: str,
) -> PolicyLoss:
    """`linear_policy_loss` in a program that is being compiled."""
    valid, dtype = targets != head.ignore_index, compute_dtype(hidden, weight)
    constants, weights = _constants(given, token_weights, valid)
    spec = getattr(objective, "spec", None)
    if spec is None or backend == "eager":
        targets = custom_ops.checked_targets(targets, len(weight), [*constants.values(), weights], head)
        scores = linear_logprob(hidden, weight, targets, head, backend)
        return _traced(scores, targets, _cast(constants, dtype), weights, objective, head)
    loss, logprobs, entropy, coefficients, seen, sparsity = custom_ops.policy_loss(
        hidden, weight, targets, [*constants.values(), weights], spec, head, backend
    )
    found = PolicyLoss(loss, logprobs, entropy, coefficients, named(sparsity))
    return _reported(found, objective, _cast(constants, dtype), seen, valid)


def logits_loss(
    logits: Tensor,
    targets: Tensor,
    given: dict,
    token_weights: Tensor | None,
    objective: LossFunction,
    head: Head,
    backend: str,
) -> PolicyLoss:
    """`logits_policy_loss` in a program that is being compiled; never in place, the compiler owns
    the memory.
    """
    valid, dtype = targets != head.ignore_index, compute_dtype(logits, logits)
    constants, weights = _constants(given, token_weights, valid)
    spec = getattr(objective, "spec", None)
    if spec is None or backend == "eager":
        targets = custom_ops.checked_targets(targets, logits.shape[1], [*constants.values(), weights], head)
        scores = eager.scores(logits.to(dtype) / head.temperature, targets, head)
        return _traced(scores, targets, _cast(constants, dtype), weights, objective, head)
    loss, logprobs, entropy, coefficients, seen = custom_ops.logits_loss(
        logits, targets, [*constants.values(), weights], spec, head, backend
    )
    return _reported(
        PolicyLoss(loss, logprobs, entropy, coefficients, {}), objective, _cast(constants, dtype), seen, valid
    )


def _constants(given: dict, token_weights: Tensor | None, valid: Tensor) -> tuple[PerToken, Tensor | None]:
    """Per-token inputs and weights, detached; rewards become advantages."""
    groups = given["advantages"]
    if isinstance(groups, GroupRewards):
        given = {**given, "advantages": custom_ops.group_advantages(groups, valid)}
    detached = {name: None if x is None else x.detach() for name, x in given.items()}
    return detached, None if token_weights is None else token_weights.detach()


def _cast(per_token: PerToken, dtype: torch.dtype) -> PerToken:
    return {name: None if x is None else x.to(dtype) for name, x in per_token.items()}


def _traced(
    scores: LogProbs,
    targets: Tensor,
    per_token: PerToken,
    token_weights: Tensor | None,
    objective: LossFunction,
    head: Head,
) -> PolicyLoss:
    """The loss on log-probs that carry a gradient, its objective traced; every unmasked row has
    been scored.
    """
    valid, dtype = targets != head.ignore_index, scores.logprobs.dtype
    if token_weights is None:
        token_weights = valid.to(dtype) / valid.sum().clamp(min=1)
    weights = torch.where(valid, token_weights, 0).to(dtype)
    active = active_rows(valid, weights, per_token["advantages"], objective, head)
    # An inactive row may hold what the objective cannot take: its gradient would be 0 * inf.
    safe = {name: None if x is None else torch.where(active, x, 0) for name, x in per_token.items()}
    loss = (weights * torch.where(active, objective(torch.where(active, scores.logprobs, 0), **safe), 0)).sum()
    logprobs, entropy = scores.logprobs.detach(), scores.entropy.detach()
    coefficients = torch.func.grad(lambda x: objective(x, **safe).sum())(torch.where(active, logprobs, 0))
    return _reported(PolicyLoss(loss, logprobs, entropy, coefficients, {}), objective, per_token, active, valid)


def _reported(
    found: PolicyLoss, objective: LossFunction, per_token: PerToken, seen: Tensor, valid: Tensor
) -> PolicyLoss:
    """The result with stats, and NaN at rows that were skipped, as outside a compiled program."""
    means = stats(objective, found.logprobs, found.entropy, per_token, seen, valid)
    logprobs, entropy = (torch.where(valid & ~seen, torch.nan, x) for x in (found.logprobs, found.entropy))
    return PolicyLoss(found.loss, logprobs, entropy, torch.where(seen, found.coefficients, 0), means | found.stats)
