"""The log-prob op and its backward as custom ops, for torch.compile(fullgraph=True).

Rows that were not scored hold 0. A custom op returns tensors only, so a sum that nobody wants comes
back empty.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...engines.accumulate import compute_dtype, scaled
from ...engines.contract import Plan, Scores
from ...head import LogProbs, Operands
from ..autograd import scored, scored_gradients
from ..backends import engine_of
from ..validation import check_values
from .encode import Settings, decode

# Of the package, by whatever name it was imported: a copy beside it has operators of its own.
NAMESPACE = __name__.partition(".")[0]
OPERANDS = len(Operands._fields)
WAITS = (torch.Tag.cudagraph_unsafe,)  # the ops choose rows on the host: a CUDA graph cannot hold them


Sums = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # one for each of Operands


def filled(sums: Any, like: Tensor) -> Sums:
    """The operands' sums, with an empty tensor in place of None."""
    found: Any = tuple(like.new_empty(0, dtype=compute_dtype(like)) if x is None else x for x in sums)
    return found


def fake_sums(operands: Operands, wanted: list[bool]) -> Sums:
    """Tensors of the shapes and dtypes that `filled` will return."""
    dtype = compute_dtype(*operands[:2])
    pairs = zip(operands, wanted, strict=True)
    sums = (x.new_empty(x.shape, dtype=dtype) if want and x is not None else None for x, want in pairs)
    return filled(sums, operands.hidden)


@torch.library.custom_op(f"{NAMESPACE}::linear_logprob", mutates_args=(), tags=WAITS)
def _linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    low_hidden: Tensor | None,
    low_weight: Tensor | None,
    targets: Tensor,
    numbers: Tensor,
    flags: list[int],
    engine_name: str,
) -> tuple[Tensor, Tensor, Tensor]:
    operands = Operands(hidden, weight, bias, low_hidden, low_weight)
    plan = _plan(operands, targets, numbers, flags, engine_name)
    check_values(targets, len(weight), plan.head, plan.backend)
    with torch.autocast(hidden.device.type, enabled=False):
        return tuple(scored(engine_of(engine_name), operands, plan))  # type: ignore[return-value]


def _plan(operands: Operands, targets: Tensor, *settings: Any) -> Plan:
    return Plan(targets, None, *decode(operands.bias, *settings), compute_dtype(*operands[:2]))


@_linear_logprob.register_fake
def _(hidden: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    *_, targets, _numbers, _flags, engine_name = rest
    rows = hidden.new_empty(targets.shape, dtype=compute_dtype(hidden, weight))  # len() would pin N
    normaliser = rows.new_empty(2, *targets.shape) if engine_name == "triton" else rows.new_empty(0)
    return rows, torch.empty_like(rows), normaliser


@torch.library.custom_op(f"{NAMESPACE}::linear_logprob_backward", mutates_args=(), tags=WAITS)
def _linear_logprob_backward(
    grad_logprobs: Tensor,
    grad_entropy: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    low_hidden: Tensor | None,
    low_weight: Tensor | None,
    targets: Tensor,
    logprobs: Tensor,
    entropy: Tensor,
    normaliser: Tensor,
    numbers: Tensor,
    flags: list[int],
    engine_name: str,
    wanted: list[bool],
) -> Sums:
    operands = Operands(hidden, weight, bias, low_hidden, low_weight)
    plan = _plan(operands, targets, numbers, flags, engine_name)
    scores, upstream = Scores(logprobs, entropy, normaliser), (grad_logprobs, grad_entropy)
    engine: Any = engine_of(engine_name)
    with torch.autocast(hidden.device.type, enabled=False):
        grads = scored_gradients(engine, operands, plan, scores, upstream, tuple(wanted))
        return filled((scaled(x, grads.unit, plan.dtype) for x in grads.sums(operands)), hidden)


@_linear_logprob_backward.register_fake
def _(grad_logprobs: Tensor, grad_entropy: Tensor, *rest: Any) -> Sums:
    return fake_sums(Operands(*rest[:OPERANDS]), rest[-1])


def _save(ctx: Any, inputs: Any, output: Any) -> None:
    *operands_and_targets, numbers, flags, engine_name = inputs
    ctx.settings = (flags, engine_name)
    ctx.save_for_backward(*operands_and_targets, *output, numbers)
    ctx.set_materialize_grads(True)


def _backward(ctx: Any, grad_logprobs: Tensor, grad_entropy: Tensor, _: Tensor) -> Any:
    operands, needs = ctx.saved_tensors[:OPERANDS], ctx.needs_input_grad[:OPERANDS]
    sums = _linear_logprob_backward(grad_logprobs, grad_entropy, *ctx.saved_tensors, *ctx.settings, list(needs))
    triples = zip(sums, operands, needs, strict=True)
    return *(total.to(x.dtype) if need else None for total, x, need in triples), None, None, None, None


_linear_logprob.register_autograd(_backward, setup_context=_save)


def linear_logprob(operands: Operands, targets: Tensor, settings: Settings) -> LogProbs:
    """The log-prob op of a compiled program: [N] each, differentiable."""
    return LogProbs(*_linear_logprob(*operands, targets, *settings)[:2])
