"""What the public ops do in a program that is being compiled: custom ops, and everything on [N] traced around them.

An objective that is a function of the caller's is traced like any other code, on the log-prob op
(2NDV + 6KDV, N the unmasked rows). That it does not mix rows is not checked there. Outside a
compiled program the same engines run under autograd.Function, which scales the gradients in place.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...engines import eager
from ...engines.accumulate import compute_dtype
from ...engines.sparse_report import named
from ...head import Backend, Head, LogProbs, Operands, PolicyLoss
from ...losses.advantages import GroupRewards
from ...losses.objectives import LossFunction, PerToken
from ..plan import active_rows
from ..result import stats
from ..validation import LossArguments
from . import logprob_op, loss_ops
from .encode import encode, objective_spec


def linear_logprob(name: str, operands: Operands, targets: Tensor, head: Head, backend: Backend) -> LogProbs:
    """`linear_logprob` in a program that is being compiled; eager is traced as it stands."""
    if name == "eager":
        return eager.logits_scores(eager.head_logits(operands, head), targets, head)
    return logprob_op.linear_logprob(operands, targets, encode(head, backend, name))


def policy_loss(name: str, operands: Operands, arguments: LossArguments) -> PolicyLoss:
    """`linear_policy_loss` in a program that is being compiled."""
    head, backend, objective = arguments.head, arguments.backend, arguments.objective
    valid, dtype = arguments.targets != head.ignore_index, compute_dtype(*operands[:2])
    per_token, weights = _constants(arguments, valid, name)
    constants, settings = [*per_token.values(), weights], encode(head, backend, name)
    spec = objective_spec(objective)
    if spec is None or name == "eager":
        targets = loss_ops.checked_targets(arguments.targets, len(operands.weight), constants, settings)
        scores = linear_logprob(name, operands, targets, head, backend)
        return _traced(scores, arguments, _cast(per_token, dtype), weights)
    rows, sparsity = loss_ops.policy_loss(operands, arguments.targets, constants, spec, settings)
    return _reported(rows, named(sparsity), objective, _cast(per_token, dtype), valid)


def logits_loss(name: str, logits: Tensor, arguments: LossArguments) -> PolicyLoss:
    """`logits_policy_loss` in a program that is being compiled; never in place, the compiler owns the memory."""
    head, objective = arguments.head, arguments.objective
    valid, dtype = arguments.targets != head.ignore_index, compute_dtype(logits)
    per_token, weights = _constants(arguments, valid, name)
    constants, settings = [*per_token.values(), weights], encode(head, arguments.backend, name)
    spec = objective_spec(objective)
    if spec is None or name == "eager":
        targets = loss_ops.checked_targets(arguments.targets, logits.shape[1], constants, settings)
        scores = eager.logits_scores(logits.to(dtype) / head.temperature, targets, head)
        return _traced(scores, arguments, _cast(per_token, dtype), weights)
    rows = loss_ops.logits_loss(logits, arguments.targets, constants, spec, settings)
    return _reported(rows, {}, objective, _cast(per_token, dtype), valid)


def _constants(arguments: LossArguments, valid: Tensor, name: str) -> tuple[PerToken, Tensor | None]:
    """Per-token inputs and weights, detached; rewards become advantages."""
    given: PerToken = {}
    for key, x in arguments.per_token.items():
        if isinstance(x, GroupRewards):
            x = loss_ops.group_advantages(x, valid, name)
        given[key] = None if x is None else x.detach()
    weights = arguments.token_weights
    return given, None if weights is None else weights.detach()


def _cast(per_token: PerToken, dtype: torch.dtype) -> PerToken:
    return {name: None if x is None else x.to(dtype) for name, x in per_token.items()}


def _traced(
    scores: LogProbs, arguments: LossArguments, per_token: PerToken, token_weights: Tensor | None
) -> PolicyLoss:
    """The loss on log-probs that carry a gradient, its objective traced; every unmasked row has been scored."""
    objective, dtype = arguments.objective, scores.logprobs.dtype
    valid = arguments.targets != arguments.head.ignore_index
    if token_weights is None:
        token_weights = valid.to(dtype) / valid.sum().clamp(min=1)
    weights = torch.where(valid, token_weights, 0).to(dtype)
    active = active_rows(valid, weights, per_token["advantages"], objective, arguments.backend)
    # An inactive row may hold what the objective cannot take: its gradient would be 0 * inf.
    safe = {name: None if x is None else torch.where(active, x, 0) for name, x in per_token.items()}
    loss = (weights * torch.where(active, objective(torch.where(active, scores.logprobs, 0), **safe), 0)).sum()
    logprobs, entropy = scores.logprobs.detach(), scores.entropy.detach()
    coefficients = torch.func.grad(lambda x: objective(x, **safe).sum())(torch.where(active, logprobs, 0))
    rows = loss_ops.SeenRows(loss, logprobs, entropy, coefficients, active)
    return _reported(rows, {}, objective, per_token, valid)


def _reported(
    rows: loss_ops.SeenRows, sparsity: dict[str, Tensor], objective: LossFunction, per_token: PerToken, valid: Tensor
) -> PolicyLoss:
    """The result with stats, and NaN at rows that were skipped, as outside a compiled program."""
    means = stats(objective, rows.logprobs, rows.entropy, per_token, rows.seen, valid)
    logprobs, entropy = (torch.where(valid & ~rows.seen, torch.nan, x) for x in (rows.logprobs, rows.entropy))
    coefficients = torch.where(rows.seen, rows.coefficients, 0)
    return PolicyLoss(rows.loss, logprobs, entropy, coefficients, means | sparsity)
