"""Autograd around an engine: which rows it sees, what is saved, how an upstream gradient arrives.

Autocast is off inside, so the dtypes of the inputs decide. Where autograd records the engine's own
operations (`Engine.recorded`), nothing stands around it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..engines.accumulate import Gradients, Wanted
from ..engines.contract import Engine, GradientEngine, LossPlan, LossRows, Plan, Scores, Upstream
from ..engines.sparse_report import named
from ..head import LogProbs, Operands
from . import sequences
from .plan import chosen, pick, pick_scores
from .result import scatter


def linear_logprob(engine: Engine, operands: Operands, plan: Plan) -> LogProbs:
    """Log-probs and entropies [N] of every unmasked row, differentiable, 0 at masked rows."""
    with torch.autocast(operands.hidden.device.type, enabled=False):
        if engine.recorded:
            return LogProbs(*engine.score(operands, plan)[:2])  # 0 at masked rows; nothing waits for the device
        return LogProbs(*_LogProb.apply(plan, engine, *operands))


def policy_loss(engine: Engine, operands: Operands, plan: LossPlan) -> LossRows:
    """The fused loss over the plan's rows, differentiable."""
    with torch.autocast(operands.hidden.device.type, enabled=False):
        if engine.recorded:
            return engine.loss(operands, plan, (False,) * len(operands))[0]
        return LossRows(*_PolicyLoss.apply(plan, engine, torch.is_grad_enabled(), *operands))


def logits_loss(engine: Engine, logits: Tensor, plan: LossPlan, inplace: bool) -> LossRows:
    """The loss on logits [N, V], differentiable. `inplace` writes the gradient over them."""
    with torch.autocast(logits.device.type, enabled=False):
        if engine.recorded and inplace:
            raise ValueError("inplace=True needs a fused backend; backend='eager' keeps the logits for autograd.")
        if engine.recorded:
            return engine.logits_loss(logits, plan, None)[0]
        return LossRows(*_LogitsLoss.apply(logits, plan, engine, torch.is_grad_enabled(), inplace))


def engine_loss(
    engine: GradientEngine, operands: Operands, plan: LossPlan, wanted: Wanted
) -> tuple[LossRows, Gradients | None]:
    """`engine.loss`, in two passes where rows depend on their whole sequence."""
    if plan.per_token.get("sequence_ids") is not None:
        return sequences.loss(engine, operands, plan, wanted)
    return engine.loss(operands, plan, wanted)


def engine_logits_loss(
    engine: GradientEngine, logits: Tensor, plan: LossPlan, grad: Tensor | None
) -> tuple[LossRows, Tensor | None]:
    """`engine.logits_loss`, in two passes where rows depend on their whole sequence."""
    if plan.per_token.get("sequence_ids") is not None:
        return sequences.logits_loss(engine, logits, plan, grad)
    return engine.logits_loss(logits, plan, grad)


def scored(engine: Engine, operands: Operands, plan: Plan) -> Scores:
    """Scores [N] of the unmasked rows, 0 at the others. The normaliser is [2, N] or empty."""
    rows = chosen(plan.targets != plan.head.ignore_index)
    scores = engine.score(operands, replace(plan, rows=rows))
    zeros = operands.hidden.new_zeros(len(plan.targets), dtype=plan.dtype)
    normaliser = scores.normaliser
    if rows is not None and normaliser.ndim == 2:
        normaliser = zeros.expand(2, -1).index_copy(1, rows, normaliser)
    return Scores(scatter(scores.logprobs, rows, zeros), scatter(scores.entropy, rows, zeros), normaliser)


def scored_gradients(
    engine: GradientEngine,
    operands: Operands,
    plan: Plan,
    scores: Scores,  # [N]
    upstream: tuple[Tensor | None, Tensor | None],  # [N], None is 0
    wanted: Wanted,
) -> Gradients:
    """Gradients of an upstream gradient on log-probs and entropies.

    Rows where both are 0 do not reach the head.
    """
    valid = plan.targets != plan.head.ignore_index
    grad_logprobs = torch.zeros_like(scores.logprobs) if upstream[0] is None else torch.where(valid, upstream[0], 0)
    grad_entropy = None if upstream[1] is None else torch.where(valid, upstream[1], 0)
    live = grad_logprobs != 0  # NaN counts as not 0
    rows = chosen(live if grad_entropy is None else live | (grad_entropy != 0))
    if grad_entropy is not None:
        grad_entropy = pick(grad_entropy, rows)
        grad_entropy = grad_entropy if bool((grad_entropy != 0).any()) else None
    chosen_scores = pick_scores(scores, rows)
    chosen_upstream = Upstream(pick(grad_logprobs, rows), grad_entropy)
    return engine.score_gradients(operands, replace(plan, rows=rows), chosen_scores, chosen_upstream, wanted)


def _refuse_double_backward(engine: Engine) -> None:
    """Refuse create_graph: autograd would leave out the gradients of these gradients in silence."""
    if torch.is_grad_enabled():
        raise RuntimeError(f"the {engine.name} head is differentiable once: for create_graph=True use backend='eager'.")


class _LogProb(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: Plan, engine: GradientEngine, *operands: Any) -> tuple[Tensor, Tensor]:
        scores = scored(engine, Operands(*operands), plan)
        ctx.plan, ctx.engine = plan, engine
        ctx.set_materialize_grads(False)  # an entropy that nobody uses then has gradient None, not zeros
        ctx.save_for_backward(*operands, plan.targets, *scores)
        return scores.logprobs, scores.entropy

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        _refuse_double_backward(ctx.engine)
        *given, targets, logprobs, entropy, normaliser = ctx.saved_tensors
        operands, plan = Operands(*given), replace(ctx.plan, targets=targets)
        scores, wanted = Scores(logprobs, entropy, normaliser), ctx.needs_input_grad[2:]
        with torch.autocast(targets.device.type, enabled=False):
            grads = scored_gradients(ctx.engine, operands, plan, scores, upstream, wanted)
            sparsity = plan.backend.sparsity
            if sparsity is not None and sparsity.on_backward is not None:
                sparsity.on_backward(named(grads.report()))
            return None, None, *grads.finish(None, operands)


class _PolicyLoss(torch.autograd.Function):
    """Forms the gradients for an upstream gradient of 1 while the chunk's exponentials are at hand.

    The first backward scales them and hands them over. A further one (retain_graph) runs the pass
    again.
    """

    @staticmethod
    def forward(ctx: Any, plan: LossPlan, engine: GradientEngine, grad_enabled: bool, *operands: Any) -> Any:
        wanted = tuple(grad_enabled and need for need in ctx.needs_input_grad[3:])
        found, ctx.grads = engine_loss(engine, Operands(*operands), plan, wanted)
        if plan.backend.sparsity is not None:
            found = found._replace(sparsity=ctx.grads.report())
        ctx.plan, ctx.engine = plan, engine
        ctx.save_for_backward(*operands)
        ctx.mark_non_differentiable(*(x for x in found[1:] if x is not None))
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *_: Any) -> Any:
        _refuse_double_backward(ctx.engine)
        operands = Operands(*ctx.saved_tensors)
        grads, ctx.grads = ctx.grads, None
        with torch.autocast(operands.hidden.device.type, enabled=False):
            if grads is None:
                _, grads = engine_loss(ctx.engine, operands, ctx.plan, ctx.needs_input_grad[3:])
            return None, None, None, *grads.finish(grad_loss, operands)


class _LogitsLoss(torch.autograd.Function):
    """Forms the gradient in the forward, over the logits themselves where asked.

    Nothing [N, V] is kept beside it.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, plan: LossPlan, engine: GradientEngine, grad_enabled: bool, inplace: bool
    ) -> Any:
        ctx.engine, ctx.grad = engine, None
        if grad_enabled and ctx.needs_input_grad[0]:
            ctx.grad = logits.detach() if inplace else torch.empty_like(logits)
        found, ctx.unit = engine_logits_loss(engine, logits, plan, ctx.grad)
        if inplace and ctx.grad is not None:
            torch.autograd.graph.increment_version(logits)  # whoever saved them must not use them unawares
        ctx.mark_non_differentiable(*found[1:4])
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *_: Any) -> Any:
        _refuse_double_backward(ctx.engine)
        grad, ctx.grad = ctx.grad, None
        if grad is None:
            raise RuntimeError(
                "the logits' gradient is formed once and handed over by the first backward: "
                "call the op again for another."
            )
        ctx.engine.scale_(grad, grad_loss if ctx.unit is None else grad_loss * ctx.unit)
        return grad, None, None, None, None
