"""What the public ops do in a program that is being compiled.

The custom ops hold what looks at values or touches the vocabulary. Everything on [N] is traced
around them. A caller's own objective is traced like any other code, on the log-prob op: 2NDV +
6KDV, N the unmasked rows. Nothing checks there that it does not mix rows. Outside a compiled
program the same engines run under autograd.Function, which scales the gradients in place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from ...engines import eager
from ...engines.accumulate import compute_dtype
from ...engines.sparse_report import named
from ...head import Backend, Head, LogProbs, Operands, PolicyLoss
from ...losses.objectives import VECTORS, LossFunction, PerToken
from ..plan import active_rows, cast, constants, token_mean
from ..result import stats
from ..validation import LossArguments
from . import logprob_op, loss_ops
from .encode import as_tensor, encode, from_spec, objective_spec, scalars

Found = TypeVar("Found", LogProbs, PolicyLoss)


# An error would not do: the compiler answers it by running the op piece by piece, each compiled.
@torch.compiler.disable(reason="Head.shard needs fullgraph=False: ranks wait for each other between two graphs")
def outside(op: Callable[..., Found], *args: Any, **kwargs: Any) -> Found:
    """An op as it runs without torch.compile: the program has a graph before it and one behind."""
    return op(*args, **kwargs)


def linear_logprob(engine_name: str, operands: Operands, targets: Tensor, head: Head, backend: Backend) -> LogProbs:
    """`linear_logprob` in a program that is being compiled. Eager is traced as it stands."""
    if engine_name == "eager":
        return eager.logits_scores(eager.head_logits(operands, head), targets, head)
    return logprob_op.linear_logprob(operands, targets, encode(head, backend, engine_name))


def policy_loss(engine_name: str, operands: Operands, arguments: LossArguments) -> PolicyLoss:
    """`linear_policy_loss` in a program that is being compiled."""
    head, backend, objective = arguments.head, arguments.backend, arguments.objective
    valid, dtype = arguments.targets != head.ignore_index, compute_dtype(*operands[:2])
    per_token, weights = _constants(arguments, valid, engine_name)
    vectors, settings = _in_order(per_token, weights), encode(head, backend, engine_name)
    spec = objective_spec(objective)
    if spec is None or engine_name == "eager":
        targets = loss_ops.checked_targets(arguments.targets, operands.weight.shape[0], vectors, settings)
        scores = linear_logprob(engine_name, operands, targets, head, backend)
        return _traced(scores, arguments, cast(per_token, dtype), weights)
    rows, sparsity = loss_ops.policy_loss(operands, arguments.targets, vectors, (spec[0], as_tensor(spec[1])), settings)
    return _reported(rows, named(sparsity), objective, cast(per_token, dtype), valid)


def logits_loss(engine_name: str, logits: Tensor, arguments: LossArguments) -> PolicyLoss:
    """`logits_policy_loss` in a program that is being compiled.

    It is never in place, because the compiler owns the memory.
    """
    head, objective = arguments.head, arguments.objective
    valid, dtype = arguments.targets != head.ignore_index, compute_dtype(logits)
    per_token, weights = _constants(arguments, valid, engine_name)
    vectors, settings = _in_order(per_token, weights), encode(head, arguments.backend, engine_name)
    spec = objective_spec(objective)
    if spec is None or engine_name == "eager":
        targets = loss_ops.checked_targets(arguments.targets, logits.shape[1], vectors, settings)
        scores = eager.logits_scores(logits.to(dtype) / head.temperature, targets, head)
        return _traced(scores, arguments, cast(per_token, dtype), weights)
    rows = loss_ops.logits_loss(logits, arguments.targets, vectors, (spec[0], as_tensor(spec[1])), settings)
    return _reported(rows, {}, objective, cast(per_token, dtype), valid)


def _constants(arguments: LossArguments, valid: Tensor, engine_name: str) -> tuple[PerToken, Tensor | None]:
    """Per-token inputs and weights, detached, rewards as advantages."""
    given = constants(arguments, lambda groups: loss_ops.group_advantages(groups, valid, engine_name))
    weights = arguments.token_weights
    return given, None if weights is None else weights.detach()


def _in_order(per_token: PerToken, weights: Tensor | None) -> loss_ops.Constants:
    """Per-token constants as the custom ops take them."""
    return [*(per_token.get(name) for name in VECTORS), weights]


def _traced(
    scores: LogProbs, arguments: LossArguments, per_token: PerToken, token_weights: Tensor | None
) -> PolicyLoss:
    """The loss on differentiable log-probs of every unmasked row, its objective traced."""
    objective, dtype = _with_open_numbers(arguments, scores.logprobs.device), scores.logprobs.dtype
    valid = arguments.targets != arguments.head.ignore_index
    if token_weights is None:
        token_weights = token_mean(valid, dtype)
    weights = torch.where(valid, token_weights, 0).to(dtype)
    active = active_rows(valid, weights, per_token["advantages"], objective, arguments.backend)
    # An inactive row may hold what the objective cannot take: its gradient would be 0 * inf.
    safe = {name: None if x is None else torch.where(active, x, 0) for name, x in per_token.items()}
    loss = (weights * torch.where(active, objective(torch.where(active, scores.logprobs, 0), **safe), 0)).sum()
    logprobs, entropy = scores.logprobs.detach(), scores.entropy.detach()
    coefficients = torch.func.grad(lambda x: objective(x, **safe).sum())(torch.where(active, logprobs, 0))
    rows = loss_ops.SeenRows(loss, logprobs, entropy, coefficients, active)
    return _reported(rows, {}, objective, per_token, valid)


def _with_open_numbers(arguments: LossArguments, device: torch.device) -> LossFunction:
    """A built-in objective with tensors for numbers, so that the graph does not depend on them."""
    spec = objective_spec(arguments.objective)
    if spec is None:
        return arguments.objective
    tau: Any = arguments.per_token.get("tau")
    return from_spec(spec[0], scalars(spec[1], device), tau)


def _reported(
    rows: loss_ops.SeenRows, sparsity: dict[str, Tensor], objective: LossFunction, per_token: PerToken, valid: Tensor
) -> PolicyLoss:
    """The result with stats, and NaN at rows that were skipped, as outside a compiled program."""
    means = stats(objective, rows.logprobs, rows.entropy, per_token, rows.seen, valid)
    logprobs, entropy = (torch.where(valid & ~rows.seen, torch.nan, x) for x in (rows.logprobs, rows.entropy))
    coefficients = torch.where(rows.seen, rows.coefficients, 0)
    return PolicyLoss(rows.loss, logprobs, entropy, coefficients, means | sparsity)
