"""The ops as custom ops, for torch.compile(fullgraph=True): what looks at values happens inside
them.

    gft_kernels::policy_loss      a built-in objective; gradients formed in the forward, scaled in the backward
    gft_kernels::logits_loss      the same from logits
    gft_kernels::linear_logprob   the log-prob op and its backward
    gft_kernels::group_advantages rewards to advantages per token

An op takes numbers, text and tensors, and returns tensors: a head travels as its numbers and
settings, an objective as its spec, and what was not wanted comes back empty. Rows that were not
scored hold 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...engines.accumulate import scaled
from ...engines.contract import SPARSITY, LossPlan, PlanResult, Scores, scatter
from ...head import Head, Sparse, compute_dtype
from ...losses.advantages import GroupRewards
from ...losses.objectives import from_spec
from ..autograd import scored, scored_gradients
from ..backends import resolve_engine
from ..plan import make_plan
from ..validation import check_values

WAITS = (torch.Tag.cudagraph_unsafe,)  # the ops choose rows on the host: a CUDA graph cannot hold them


def _numbers(head: Head) -> list[float]:
    sparse = head.sparsity
    given = (
        []
        if sparse is None
        else [sparse.error, -1.0 if sparse.eps is None else sparse.eps, float(sparse.tail), sparse.pays]
    )
    return [head.scale, head.softcap or 0.0, head.temperature, *given]


def _settings(head: Head) -> list[int]:
    return [head.ignore_index, head.chunk_rows or 0, int(head.skip_rows), int(head.validate)]


def _head(bias: Tensor | None, numbers: list[float], settings: list[int]) -> Head:
    scale, softcap, temperature, *given = numbers
    ignore_index, chunk_rows, skip_rows, validate = settings
    sparse = Sparse(given[0], None if given[1] < 0 else given[1], bool(given[2]), given[3]) if given else None
    return Head(
        bias,
        scale,
        softcap or None,
        temperature,
        ignore_index,
        chunk_rows or None,
        bool(skip_rows),
        bool(validate),
        sparse,
    )


def _wanted(*inputs: Tensor | None) -> list[bool]:
    return [torch.is_grad_enabled() and x is not None and x.requires_grad for x in inputs]


def _filled(found: tuple[Tensor | None, ...], like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """An op returns tensors only: what was not wanted is empty."""
    hidden, weight, bias = (like.new_empty(0, dtype=compute_dtype(like, like)) if x is None else x for x in found)
    return hidden, weight, bias


def _fake_sums(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, wanted: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = compute_dtype(hidden, weight)
    pairs = zip((hidden, weight, bias), wanted, strict=True)
    return _filled(
        tuple(x.new_empty(x.shape, dtype=dtype) if want and x is not None else None for x, want in pairs), hidden
    )


@torch.library.custom_op("gft_kernels::linear_logprob", mutates_args=(), tags=WAITS)
def _linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    numbers: list[float],
    settings: list[int],
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    head = _head(bias, numbers, settings)
    check_values(targets, len(weight), head)
    with torch.autocast(hidden.device.type, enabled=False):
        return scored(resolve_engine(backend), hidden, weight, bias, targets, head)


@_linear_logprob.register_fake
def _(hidden, weight, bias, targets, numbers, settings, backend):
    rows = hidden.new_empty(len(targets), dtype=compute_dtype(hidden, weight))
    normaliser = rows.new_empty(2, len(targets)) if backend == "triton" else rows.new_empty(0)
    return rows, torch.empty_like(rows), normaliser


@torch.library.custom_op("gft_kernels::linear_logprob_backward", mutates_args=(), tags=WAITS)
def _linear_logprob_backward(
    grad_logprobs: Tensor,
    grad_entropy: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    logprobs: Tensor,
    entropy: Tensor,
    normaliser: Tensor,
    numbers: list[float],
    settings: list[int],
    backend: str,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    head, scores = _head(bias, numbers, settings), Scores(logprobs, entropy, normaliser)
    wanted3 = (wanted[0], wanted[1], wanted[2])
    with torch.autocast(hidden.device.type, enabled=False):
        upstream = (grad_logprobs, grad_entropy)
        grads = scored_gradients(
            resolve_engine(backend), hidden, weight, bias, targets, head, scores, upstream, wanted3
        )
        dtype = compute_dtype(hidden, weight)
        return _filled(tuple(scaled(x, grads.unit, dtype) for x in grads.sums((hidden, weight, bias))), hidden)


@_linear_logprob_backward.register_fake
def _(
    grad_logprobs,
    grad_entropy,
    hidden,
    weight,
    bias,
    targets,
    logprobs,
    entropy,
    normaliser,
    numbers,
    settings,
    backend,
    wanted,
):
    return _fake_sums(hidden, weight, bias, wanted)


def _save_logprob(ctx, inputs, output):
    hidden, weight, bias, targets, *ctx.rest = inputs
    ctx.save_for_backward(hidden, weight, bias, targets, *output)
    ctx.set_materialize_grads(True)


def _logprob_backward(ctx, grad_logprobs, grad_entropy, _):
    inputs, needs = ctx.saved_tensors[:3], ctx.needs_input_grad[:3]
    sums = _linear_logprob_backward(grad_logprobs, grad_entropy, *ctx.saved_tensors, *ctx.rest, list(needs))
    triples = zip(sums, inputs, needs, strict=True)
    return *(total.to(x.dtype) if need else None for total, x, need in triples), None, None, None, None


_linear_logprob.register_autograd(_logprob_backward, setup_context=_save_logprob)


@torch.library.custom_op("gft_kernels::group_advantages", mutates_args=(), tags=WAITS)
def _group_advantages(
    rewards: Tensor, group_ids: Tensor, sequence_ids: Tensor, valid: Tensor, scale: str, singleton: str, eps: float
) -> Tensor:
    return GroupRewards(rewards, group_ids, sequence_ids, scale, singleton, eps).per_token(valid)  # type: ignore[arg-type]


@_group_advantages.register_fake
def _(rewards, group_ids, sequence_ids, valid, scale, singleton, eps):
    return rewards.new_empty(valid.shape, dtype=compute_dtype(rewards, rewards))


@torch.library.custom_op("gft_kernels::checked_targets", mutates_args=(), tags=WAITS)
def _checked_targets(
    targets: Tensor,
    size: int,
    advantages: Tensor | None,
    old_logprobs: Tensor | None,
    ref_logprobs: Tensor | None,
    token_weights: Tensor | None,
    settings: list[int],
) -> Tensor:
    vectors = {
        "advantages": advantages,
        "old_logprobs": old_logprobs,
        "ref_logprobs": ref_logprobs,
        "token_weights": token_weights,
    }
    check_values(targets, size, _head(None, [1.0, 0.0, 1.0], settings), vectors)
    return targets.clone()


@_checked_targets.register_fake
def _(targets, size, advantages, old_logprobs, ref_logprobs, token_weights, settings):
    return torch.empty_like(targets)


@torch.library.custom_op("gft_kernels::policy_loss", mutates_args=(), tags=WAITS)
def _policy_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    advantages: Tensor | None,
    old_logprobs: Tensor | None,
    ref_logprobs: Tensor | None,
    token_weights: Tensor | None,
    objective: str,
    parameters: list[float],
    numbers: list[float],
    settings: list[int],
    backend: str,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(loss, log-probs, entropy, coefficients, seen rows [N], sparsity; sums of dhidden, dweight,
    dbias over the last, a scalar).
    """
    head = _head(bias, numbers, settings)
    given = {"advantages": advantages, "old_logprobs": old_logprobs, "ref_logprobs": ref_logprobs}
    with torch.autocast(hidden.device.type, enabled=False):
        plan, valid = make_plan((hidden, weight), targets, given, token_weights, from_spec(objective, parameters), head)
        result, grads = resolve_engine(backend).loss(hidden, weight, bias, plan, (wanted[0], wanted[1], wanted[2]))
        report = grads.report()
        rows = *_rows(result, plan, valid), result.loss.new_empty(0) if report is None else report
        return *rows, *_filled(tuple(grads.sums((hidden, weight, bias))), hidden), _unit(grads.unit, result.loss)


def _rows(result: PlanResult, plan: LossPlan, valid: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(loss, log-probs, entropy, coefficients, seen) with the rows scattered to [N]."""
    zeros = torch.zeros_like(valid, dtype=result.loss.dtype)
    logprobs, entropy, coefficients = (
        scatter(x, plan.rows, zeros) for x in (result.logprobs, result.entropy, result.coefficients)
    )
    return result.loss, logprobs, entropy, coefficients, scatter(torch.ones_like(plan.weights), plan.rows, zeros).bool()


def _unit(unit: Tensor | None, like: Tensor) -> Tensor:
    return like.new_ones(()) if unit is None else unit


def _fake_rows(logits_like: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    row = logits_like.new_empty(len(logits_like), dtype=dtype)
    return (
        row.new_empty(()),
        row,
        torch.empty_like(row),
        torch.empty_like(row),
        row.new_empty(row.shape, dtype=torch.bool),
    )


@_policy_loss.register_fake
def _(
    hidden,
    weight,
    bias,
    targets,
    advantages,
    old_logprobs,
    ref_logprobs,
    token_weights,
    objective,
    parameters,
    numbers,
    settings,
    backend,
    wanted,
):
    dtype = compute_dtype(hidden, weight)
    sparsity = hidden.new_empty(len(SPARSITY) if len(numbers) > 3 else 0, dtype=dtype)
    return (
        *_fake_rows(hidden, dtype),
        sparsity,
        *_fake_sums(hidden, weight, bias, wanted),
        hidden.new_empty((), dtype=dtype),
    )


def _save_loss(ctx, inputs, output):
    ctx.save_for_backward(*output[6:])
    ctx.inputs = [None if x is None else x.dtype for x in inputs[:3]]
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _loss_backward(ctx, grad_loss, *_):
    *sums, unit = ctx.saved_tensors
    scale = grad_loss * unit
    pairs = zip(sums, ctx.inputs, ctx.needs_input_grad[:3], strict=True)
    return *((total * scale).to(dtype) if need else None for total, dtype, need in pairs), *(None,) * 11


_policy_loss.register_autograd(_loss_backward, setup_context=_save_loss)


@torch.library.custom_op("gft_kernels::logits_loss", mutates_args=(), tags=WAITS)
def _logits_loss(
    logits: Tensor,
    targets: Tensor,
    advantages: Tensor | None,
    old_logprobs: Tensor | None,
    ref_logprobs: Tensor | None,
    token_weights: Tensor | None,
    objective: str,
    parameters: list[float],
    numbers: list[float],
    settings: list[int],
    backend: str,
    wanted: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(loss, log-probs, entropy, coefficients, seen rows [N]; the gradient [N, V] in multiples of
    the last, a scalar).
    """
    head = _head(None, numbers, settings)
    given = {"advantages": advantages, "old_logprobs": old_logprobs, "ref_logprobs": ref_logprobs}
    with torch.autocast(logits.device.type, enabled=False):
        plan, valid = make_plan(
            (logits, logits.T), targets, given, token_weights, from_spec(objective, parameters), head
        )
        grad = torch.empty_like(logits) if wanted else None
        result, unit = resolve_engine(backend).logits_loss(logits, plan, grad)
        return *_rows(result, plan, valid), logits.new_empty(0) if grad is None else grad, _unit(unit, result.loss)


@_logits_loss.register_fake
def _(
    logits,
    targets,
    advantages,
    old_logprobs,
    ref_logprobs,
    token_weights,
    objective,
    parameters,
    numbers,
    settings,
    backend,
    wanted,
):
    dtype = compute_dtype(logits, logits)
    return (
        *_fake_rows(logits, dtype),
        torch.empty_like(logits) if wanted else logits.new_empty(0),
        logits.new_empty((), dtype=dtype),
    )


def _save_logits(ctx, inputs, output):
    ctx.save_for_backward(*output[5:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _logits_backward(ctx, grad_loss, *_):
    grad, unit = ctx.saved_tensors
    return (grad.to(unit.dtype) * (grad_loss * unit)).to(grad.dtype), *(None,) * 11


_logits_loss.register_autograd(_logits_backward, setup_context=_save_logits)


# What compiled programs call: the same with a Head, and the per-token constants in the order of a
# call's.


def linear_logprob(hidden: Tensor, weight: Tensor, targets: Tensor, head: Head, backend: str) -> tuple[Tensor, Tensor]:
    """(log-probs, entropy) [N], differentiable."""
    return _linear_logprob(hidden, weight, head.bias, targets, _numbers(head), _settings(head), backend)[:2]


def checked_targets(targets: Tensor, size: int, constants: list[Tensor | None], head: Head) -> Tensor:
    """The targets, once `check_values` has passed them and the per-token constants."""
    return _checked_targets(targets, size, *constants, _settings(head))


def group_advantages(groups: GroupRewards, valid: Tensor) -> Tensor:
    """`GroupRewards.per_token`."""
    return _group_advantages(
        groups.rewards, groups.group_ids, groups.sequence_ids, valid, groups.scale, groups.singleton, groups.eps
    )


def policy_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    constants: list[Tensor | None],
    objective: tuple[str, list[float]],
    head: Head,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(loss, log-probs, entropy, coefficients, seen rows, sparsity); constants: advantages, old and
    reference log-probs, token weights.
    """
    inputs = (hidden, weight, head.bias)
    return _policy_loss(
        *inputs, targets, *constants, *objective, _numbers(head), _settings(head), backend, _wanted(*inputs)
    )[:6]


def logits_loss(
    logits: Tensor,
    targets: Tensor,
    constants: list[Tensor | None],
    objective: tuple[str, list[float]],
    head: Head,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The same from logits [N, V]."""
    return _logits_loss(
        logits, targets, *constants, *objective, _numbers(head), _settings(head), backend, _wanted(logits)[0]
    )[:5]
