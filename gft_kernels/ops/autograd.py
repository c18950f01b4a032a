"""Autograd around an engine: which rows it sees, what is saved, how an upstream gradient reaches
the sums.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..engines.accumulate import Gradients
from ..engines.contract import Backend, Engine, LossPlan, PlanResult, Scores, Wanted, chosen, named, pick, scatter
from ..head import Head, LogProbs, compute_dtype


def scored(
    engine: Engine, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, head: Head
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs and entropies [N], 0 at masked rows, and the engine's normaliser ([2, N] or empty)."""
    rows = chosen(targets != head.ignore_index)
    scores = engine.score(hidden, weight, bias, targets, head, rows)
    zeros = hidden.new_zeros(len(targets), dtype=compute_dtype(hidden, weight))
    normaliser = scores.normaliser
    if rows is not None and normaliser.ndim == 2:
        normaliser = zeros.expand(2, -1).index_copy(1, rows, normaliser)
    return scatter(scores.logprobs, rows, zeros), scatter(scores.entropy, rows, zeros), normaliser


def scored_gradients(
    engine: Engine,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    head: Head,
    scores: Scores,
    upstream: tuple[Tensor | None, Tensor | None],
    wanted: Wanted,
) -> Gradients:
    """Gradients of an upstream [N] on log-probs and entropies, None is 0; only rows where one of
    them is not 0 reach the head.
    """
    valid = targets != head.ignore_index
    grad_logprobs = torch.zeros_like(scores.logprobs) if upstream[0] is None else torch.where(valid, upstream[0], 0)
    grad_entropy = None if upstream[1] is None else torch.where(valid, upstream[1], 0)
    live = grad_logprobs != 0  # NaN counts as not 0
    rows = chosen(live if grad_entropy is None else live | (grad_entropy != 0))
    if grad_entropy is not None:
        grad_entropy = pick(grad_entropy, rows)
        grad_entropy = grad_entropy if bool((grad_entropy != 0).any()) else None
    normaliser = scores.normaliser
    if rows is not None and normaliser.ndim == 2:
        normaliser = normaliser[:, rows]
    scores = Scores(pick(scores.logprobs, rows), pick(scores.entropy, rows), normaliser)
    return engine.score_gradients(
        hidden, weight, bias, targets, head, rows, scores, (pick(grad_logprobs, rows), grad_entropy), wanted
    )


def _refuse_double_backward(engine: Engine) -> None:
    """Gradients of these gradients do not exist, and autograd would leave them out in silence."""
    if torch.is_grad_enabled():
        raise RuntimeError(f"the {engine.name} head is differentiable once: for create_graph=True use backend='eager'.")


class _LogProb(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, head, engine):
        logprobs, entropy, normaliser = scored(engine, hidden, weight, bias, targets, head)
        ctx.head, ctx.engine = head, engine
        ctx.set_materialize_grads(False)  # an entropy that nobody uses costs no look at its gradient
        ctx.save_for_backward(hidden, weight, bias, targets, logprobs, entropy, normaliser)
        return logprobs, entropy

    @staticmethod
    def backward(ctx, *upstream):
        _refuse_double_backward(ctx.engine)
        hidden, weight, bias, targets, *scores = ctx.saved_tensors
        with torch.autocast(hidden.device.type, enabled=False):
            grads = scored_gradients(
                ctx.engine, hidden, weight, bias, targets, ctx.head, Scores(*scores), upstream, ctx.needs_input_grad[:3]
            )
            if ctx.head.sparsity is not None and ctx.head.sparsity.on_backward is not None:
                ctx.head.sparsity.on_backward(named(grads.report()))
            return *grads.finish(None, (hidden, weight, bias)), None, None, None


class _PolicyLoss(torch.autograd.Function):
    """Forms the gradients for an upstream gradient of 1 while the chunk's exponentials are at hand.

    The first backward scales and hands them over; a further one (retain_graph) runs the pass again.
    """

    @staticmethod
    def forward(ctx, hidden, weight, bias, plan, engine, grad_enabled):
        wanted = tuple(grad_enabled and need for need in ctx.needs_input_grad[:3])
        result, ctx.grads = engine.loss(hidden, weight, bias, plan, wanted)
        result = result._replace(sparsity=ctx.grads.report())
        ctx.plan, ctx.engine = plan, engine
        ctx.save_for_backward(hidden, weight, bias)
        ctx.mark_non_differentiable(*(x for x in result[1:] if x is not None))
        return tuple(result)

    @staticmethod
    def backward(ctx, grad_loss, *_):
        _refuse_double_backward(ctx.engine)
        hidden, weight, bias = ctx.saved_tensors
        grads, ctx.grads = ctx.grads, None
        with torch.autocast(hidden.device.type, enabled=False):
            if grads is None:
                _, grads = ctx.engine.loss(hidden, weight, bias, ctx.plan, ctx.needs_input_grad[:3])
            return *grads.finish(grad_loss, (hidden, weight, bias)), None, None, None


class _LogitsLoss(torch.autograd.Function):
    """The gradient is formed in the forward, over the logits themselves where asked; nothing [N, V]
    is kept beside it.
    """

    @staticmethod
    def forward(ctx, logits, plan, engine, grad_enabled, inplace):
        ctx.engine, ctx.grad = engine, None
        if grad_enabled and ctx.needs_input_grad[0]:
            ctx.grad = logits.detach() if inplace else torch.empty_like(logits)
        result, ctx.unit = engine.logits_loss(logits, plan, ctx.grad)
        if inplace and ctx.grad is not None:
            torch.autograd.graph.increment_version(logits)  # whoever saved them must not use them unawares
        ctx.mark_non_differentiable(*result[1:4])
        return tuple(result)

    @staticmethod
    def backward(ctx, grad_loss, *_):
        _refuse_double_backward(ctx.engine)
        grad, ctx.grad = ctx.grad, None
        if grad is None:
            raise RuntimeError(
                "the logits' gradient is formed once and handed over by the first backward: call the op again for "
                "another."
            )
        ctx.engine.scale_(grad, grad_loss if ctx.unit is None else grad_loss * ctx.unit)
        return grad, None, None, None, None


def backend_of(engine: Engine) -> Backend:
    """The differentiable backend of an engine; autocast is off inside, the inputs' dtypes decide."""

    def linear_logprob(hidden: Tensor, weight: Tensor, targets: Tensor, head: Head) -> LogProbs:
        with torch.autocast(hidden.device.type, enabled=False):
            return LogProbs(*_LogProb.apply(hidden, weight, head.bias, targets, head, engine))

    def policy_loss(hidden: Tensor, weight: Tensor, plan: LossPlan) -> PlanResult:
        with torch.autocast(hidden.device.type, enabled=False):
            return PlanResult(*_PolicyLoss.apply(hidden, weight, plan.head.bias, plan, engine, torch.is_grad_enabled()))

    def logits_loss(logits: Tensor, plan: LossPlan, inplace: bool) -> PlanResult:
        with torch.autocast(logits.device.type, enabled=False):
            return PlanResult(*_LogitsLoss.apply(logits, plan, engine, torch.is_grad_enabled(), inplace))

    return Backend(engine.name, linear_logprob, policy_loss, logits_loss)
