"""The losses as custom ops, for torch.compile(fullgraph=True). What looks at values is inside them.

    gft_kernels::policy_loss       a built-in objective; gradients formed in the forward, scaled in the backward
    gft_kernels::logits_loss       the same from logits
    gft_kernels::group_advantages  rewards to advantages per token
    gft_kernels::checked_targets   the targets, once their values and the per-token constants have been looked at

Per-token constants travel in one order everywhere: VECTORS, then the token weights. Rows that were
not seen hold 0. What was not wanted comes back empty.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...engines.accumulate import compute_dtype
from ...engines.contract import LossPlan, LossRows
from ...engines.sparse_report import NAMES
from ...head import Operands
from ...losses.advantages import GroupRewards
from ...losses.objectives import VECTORS
from ..autograd import engine_logits_loss, engine_loss
from ..backends import engine_of
from ..plan import make_plan
from ..result import scatter
from ..validation import LossArguments, check_values
from .encode import Settings, decode, from_spec, has_sparsity
from .logprob_op import NAMESPACE, OPERANDS, WAITS, fake_sums, filled

Constants = list[Tensor | None]  # [N] each: those of VECTORS, then the token weights
Spec = tuple[str, Tensor]  # of `objective_spec`, its numbers as a tensor


class SeenRows(NamedTuple):
    """A loss, and its rows scattered to [N]."""

    loss: Tensor
    logprobs: Tensor
    entropy: Tensor
    coefficients: Tensor
    seen: Tensor  # bool, the rows of the plan


@torch.library.custom_op(f"{NAMESPACE}::group_advantages", mutates_args=(), tags=WAITS)
def _group_advantages(
    rewards: Tensor,
    group_ids: Tensor,
    sequence_ids: Tensor,
    valid: Tensor,
    scale: str,
    singleton: str,
    eps: float,
    engine_name: str,
) -> Tensor:
    groups = GroupRewards(rewards, group_ids, sequence_ids, scale, singleton, eps)  # type: ignore[arg-type]
    return groups.per_token(valid, engine_of(engine_name).group_advantages)


@_group_advantages.register_fake
def _(rewards: Tensor, group_ids: Tensor, sequence_ids: Tensor, valid: Tensor, *_: Any) -> Tensor:
    return rewards.new_empty(valid.shape, dtype=compute_dtype(rewards))


def group_advantages(groups: GroupRewards, valid: Tensor, engine_name: str) -> Tensor:  # [N]
    """`GroupRewards.per_token` in a compiled program."""
    options = (groups.scale, groups.singleton, groups.eps)
    return _group_advantages(groups.rewards, groups.group_ids, groups.sequence_ids, valid, *options, engine_name)


@torch.library.custom_op(f"{NAMESPACE}::checked_targets", mutates_args=(), tags=WAITS)
def _checked_targets(
    targets: Tensor,
    size: int,
    advantages: Tensor | None,
    old_logprobs: Tensor | None,
    ref_logprobs: Tensor | None,
    tau: Tensor | None,
    sequence_ids: Tensor | None,
    importance_weights: Tensor | None,
    token_weights: Tensor | None,
    numbers: Tensor,
    flags: list[int],
    engine_name: str,
) -> Tensor:
    head, chosen = decode(None, numbers, flags, engine_name)
    vectors = (advantages, old_logprobs, ref_logprobs, tau, sequence_ids, importance_weights, token_weights)
    check_values(targets, size, head, chosen, dict(zip((*VECTORS, "token_weights"), vectors, strict=True)))
    return targets.clone()


@_checked_targets.register_fake
def _(targets: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(targets)


def checked_targets(targets: Tensor, size: int, constants: Constants, settings: Settings) -> Tensor:
    """The targets of a compiled program, looked at when it runs."""
    return _checked_targets(targets, size, *constants, *settings)


@torch.library.custom_op(f"{NAMESPACE}::policy_loss", mutates_args=(), tags=WAITS)
def _policy_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    low_hidden: Tensor | None,
    low_weight: Tensor | None,
    targets: Tensor,
    advantages: Tensor | None,
    old_logprobs: Tensor | None,
    ref_logprobs: Tensor | None,
    tau: Tensor | None,
    sequence_ids: Tensor | None,
    importance_weights: Tensor | None,
    token_weights: Tensor | None,
    objective: str,
    parameters: Tensor,
    numbers: Tensor,
    flags: list[int],
    engine_name: str,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """SeenRows, sparsity, the operands' sums, and the scalar unit that they are multiples of."""
    operands = Operands(hidden, weight, bias, low_hidden, low_weight)
    dtype = compute_dtype(hidden, weight)
    engine: Any = engine_of(engine_name)  # no recorded one comes here
    vectors = (advantages, old_logprobs, ref_logprobs, tau, sequence_ids, importance_weights)
    constants = [*vectors, token_weights]
    settings = Settings(numbers, flags, engine_name)
    arguments = _arguments(targets, len(weight), constants, (objective, parameters), bias, settings)
    with torch.autocast(hidden.device.type, enabled=False):
        plan = make_plan(arguments, dtype, engine)
        found, grads = engine_loss(engine, operands, plan, tuple(wanted))
        assert grads is not None
        report = grads.report()
        sparsity = found.loss.new_empty(0) if report is None else report
        sums = filled(grads.sums(operands), hidden)
        return *_seen_rows(found, plan), sparsity, *sums, _unit(grads.unit, found.loss)


def _arguments(
    targets: Tensor, size: int, constants: Constants, spec: Spec, bias: Tensor | None, settings: Settings
) -> LossArguments:
    """The arguments of a loss over `size` columns, their values checked."""
    head, backend = decode(bias, *settings)
    *given, token_weights = constants
    per_token: Any = dict(zip(VECTORS, given, strict=True))
    objective = from_spec(spec[0], spec[1].tolist(), per_token)
    arguments = LossArguments(targets, per_token, token_weights, objective, head, backend)
    check_values(targets, size, head, backend, arguments.vectors())
    return arguments


def _seen_rows(found: LossRows, plan: LossPlan) -> SeenRows:
    zeros = torch.zeros_like(plan.valid, dtype=plan.dtype)
    logprobs, entropy, coefficients = (scatter(x, plan.rows, zeros) for x in found[1:4] if x is not None)
    seen = scatter(torch.ones_like(plan.weights), plan.rows, zeros).bool()
    return SeenRows(found.loss, logprobs, entropy, coefficients, seen)


def _unit(unit: Tensor | None, like: Tensor) -> Tensor:
    return like.new_ones(()) if unit is None else unit


def _fake_rows(like: Tensor, dtype: torch.dtype) -> SeenRows:
    row = like.new_empty(like.shape[:1], dtype=dtype)
    return SeenRows(
        row.new_empty(()), row, torch.empty_like(row), torch.empty_like(row), row.new_empty(row.shape).bool()
    )


@_policy_loss.register_fake
def _(*inputs: Any) -> tuple[Tensor, ...]:
    *_, numbers, _flags, _backend, wanted = inputs
    operands = Operands(*inputs[:OPERANDS])
    hidden, dtype = operands.hidden, compute_dtype(*operands[:2])
    sparsity = hidden.new_empty(len(NAMES) if has_sparsity(numbers) else 0, dtype=dtype)
    sums = fake_sums(operands, wanted)
    return *_fake_rows(hidden, dtype), sparsity, *sums, hidden.new_empty((), dtype=dtype)


def _save_loss(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*output[6:])
    ctx.dtypes = [None if x is None else x.dtype for x in inputs[:OPERANDS]]
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _loss_backward(ctx: Any, grad_loss: Tensor, *_: Any) -> Any:
    *sums, unit = ctx.saved_tensors
    scale = grad_loss * unit
    triples = zip(sums, ctx.dtypes, ctx.needs_input_grad[:OPERANDS], strict=True)
    return *((total * scale).to(dtype) if need else None for total, dtype, need in triples), *(None,) * 14


_policy_loss.register_autograd(_loss_backward, setup_context=_save_loss)


def policy_loss(
    operands: Operands, targets: Tensor, constants: Constants, spec: Spec, settings: Settings
) -> tuple[SeenRows, Tensor]:
    """(rows, sparsity) of a compiled program. The loss is differentiable."""
    wanted = [torch.is_grad_enabled() and x is not None and x.requires_grad for x in operands]
    *rows, sparsity = _policy_loss(*operands, targets, *constants, *spec, *settings, wanted)[:6]
    return SeenRows(*rows), sparsity


@torch.library.custom_op(f"{NAMESPACE}::logits_loss", mutates_args=(), tags=WAITS)
def _logits_loss(
    logits: Tensor,
    targets: Tensor,
    advantages: Tensor | None,
    old_logprobs: Tensor | None,
    ref_logprobs: Tensor | None,
    tau: Tensor | None,
    sequence_ids: Tensor | None,
    importance_weights: Tensor | None,
    token_weights: Tensor | None,
    objective: str,
    parameters: Tensor,
    numbers: Tensor,
    flags: list[int],
    engine_name: str,
    wanted: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """SeenRows, the gradient [N, V], and the scalar unit it is a multiple of."""
    vectors = (advantages, old_logprobs, ref_logprobs, tau, sequence_ids, importance_weights)
    constants: Constants = [*vectors, token_weights]
    engine: Any = engine_of(engine_name)
    settings = Settings(numbers, flags, engine_name)
    arguments = _arguments(targets, logits.shape[1], constants, (objective, parameters), None, settings)
    with torch.autocast(logits.device.type, enabled=False):
        plan = make_plan(arguments, compute_dtype(logits), engine)
        grad = torch.empty_like(logits) if wanted else None
        found, unit = engine_logits_loss(engine, logits, plan, grad)
        return *_seen_rows(found, plan), logits.new_empty(0) if grad is None else grad, _unit(unit, found.loss)


@_logits_loss.register_fake
def _(logits: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    dtype, wanted = compute_dtype(logits), rest[-1]
    grad = torch.empty_like(logits) if wanted else logits.new_empty(0)
    return *_fake_rows(logits, dtype), grad, logits.new_empty((), dtype=dtype)


def _save_logits(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*output[5:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _logits_backward(ctx: Any, grad_loss: Tensor, *_: Any) -> Any:
    grad, unit = ctx.saved_tensors
    return (grad.to(unit.dtype) * (grad_loss * unit)).to(grad.dtype), *(None,) * 14


_logits_loss.register_autograd(_logits_backward, setup_context=_save_logits)


def logits_loss(logits: Tensor, targets: Tensor, constants: Constants, spec: Spec, settings: Settings) -> SeenRows:
    """The rows of a loss on logits [N, V] in a compiled program. The loss is differentiable."""
    wanted = torch.is_grad_enabled() and logits.requires_grad
    return SeenRows(*_logits_loss(logits, targets, *constants, *spec, *settings, wanted)[:5])
