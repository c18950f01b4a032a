"""The chunked engine in plain PyTorch: any device, no [N, V] tensor, gradients of the fused loss
formed in the forward.

For a chunk of K rows, with E_j = exp(z_j - max z) and the target's own entry taken out of the sum,

    rest = sum_{j != y} E_j        s = rest + E_y        log p = -log1p(rest / E_y)        1 - p = rest / s
    G_j  = E_j for j != y, G_y = -rest                   so that dz = -(coef / s) * G, row by row
    dhidden = f * (G @ W)          dweight += G^T @ (f * hidden)          f = -coef * w / s
    entropy = -log p - (hidden . (G @ W) + G @ bias) / s

The coefficient touches only [K, D] factors: after exp and sum, no pass over [K, V] remains but the
GEMMs. 1 - p is a sum of positive terms, exact for confident rows where 1 - exp(log p) has no digits
left, and the entropy is free of charge.

Cost: fused loss 6KDV for K active rows; log-prob op 2NDV forward, 6KDV backward for K rows with an
upstream gradient.
Memory: chunk * V (twice for softcap and the log-prob forward, three times for entropy gradients),
dweight in fp32, and for 16-bit inputs an fp32 copy of the weight (logits are never rounded to 16
bits).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..head import Head, compute_dtype
from ..losses.objectives import losses_and_coefficients
from .accumulate import Gradients, Index, Rows, unit_of
from .contract import Engine, LossPlan, PlanResult, Scores, Wanted
from .sparse import gradients


def chunk_rows(hidden_size: int, head: Head) -> int:
    """Rows a chunk: the chunk's [K, V] stays at a quarter of the size of dweight [V, D], within 128
    (sparse: 256) to 4096 rows.
    """
    return head.chunk_rows or min(max(hidden_size // 4, 128 if head.sparsity is None else 256), 4096)


def _chunks(count: int, size: int, rows: Tensor | None) -> list[tuple[slice, Index]]:
    """(position among the chosen rows, index into [N]) of every chunk; slices where all rows are
    chosen: no gather.
    """
    positions = [slice(i, min(i + size, count)) for i in range(0, count, size)]
    return [(p, p if rows is None else rows[p]) for p in positions]


@dataclass
class _Chunk:
    """The softmax of one chunk of rows, held as unnormalised exponentials."""

    grad: Tensor  # [K, V] G above
    rest: Tensor  # [K]
    exp_target: Tensor  # [K] E_y
    total: Tensor  # [K] s = rest + E_y
    logprobs: Tensor  # [K]
    shifted: Tensor | None  # [K, V] z - max z, where asked for
    maximum: Tensor  # [K]
    target: tuple[Tensor, Tensor]  # index of the target's entry of each row


def _forward_chunk(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, head: Head, buffers: list[Tensor]
) -> _Chunk:
    """Logits, transforms and exponentials of one chunk; a second buffer asks for `shifted`."""
    factor = head.scale if head.softcap is not None else head.scale / head.temperature
    z = torch.mm(hidden * factor, weight.T, out=buffers[0][: len(targets)])
    if bias is not None:
        z.add_(bias * factor)
    if head.softcap is not None:
        z.div_(head.softcap).tanh_().mul_(head.softcap / head.temperature)
    return _softmax(z, targets, buffers[1] if len(buffers) > 1 else None)


def _softmax(z: Tensor, targets: Tensor, exps: Tensor | None = None) -> _Chunk:
    """Logits [K, V] to exponentials: in place, or into `exps`, and then z - max z stays."""
    at_target = (torch.arange(len(targets), device=targets.device), targets)
    maximum = z.amax(1)
    z.sub_(maximum[:, None])
    target_logit = z[at_target]
    shifted = None if exps is None else z
    z = z.exp_() if exps is None else torch.exp(z, out=exps[: len(targets)])
    exp_target = z[at_target]
    z[at_target] = 0
    rest = z.sum(1)
    total = rest + exp_target
    logprobs = torch.where(exp_target > 0.5, -torch.log1p(rest / exp_target), target_logit - total.log())
    z[at_target] = -rest
    return _Chunk(z, rest, exp_target, total, logprobs, shifted, maximum, at_target)


def _row_dot(a: Tensor, b: Tensor) -> Tensor:
    """[K] sums of a * b over each row without the [K, V] product in memory, in tiles: one long fp32
    dot loses two digits.
    """
    tiles = zip(a.split(512, 1), b.split(512, 1), strict=True)
    return torch.stack([torch.bmm(x[:, None], y[:, :, None]).flatten() for x, y in tiles]).sum(0)


def _entropy(chunk: _Chunk) -> Tensor:
    """[K] entropy from the shifted logits: log s - sum_j E_j (z_j - max z) / s."""
    assert chunk.shifted is not None
    own = chunk.shifted[chunk.target]
    chunk.shifted[chunk.target] = 0
    others = _row_dot(chunk.grad, chunk.shifted)
    if (
        broken := others.isnan().nonzero().squeeze(1)
    ).numel():  # 0 * -inf: a large finite number has the same exponential, 0
        others[broken] = _row_dot(chunk.grad[broken], chunk.shifted[broken].clamp(min=-1e30))
    chunk.shifted[chunk.target] = own
    return chunk.total.log() - (others + chunk.exp_target * own.clamp(min=-1e30)) / chunk.total


def _entropy_from_exps(chunk: _Chunk) -> Tensor:
    """[K] entropy from the exponentials alone, log s - sum_j E_j log E_j / s: no second [K, V], 16
    rows at a time stay in cache.
    """
    own, sums, buffer = chunk.grad[chunk.target], torch.empty_like(chunk.total), torch.empty_like(chunk.grad[:16])
    chunk.grad[chunk.target] = chunk.exp_target
    for at, _ in _chunks(len(sums), 16, None):
        exps = chunk.grad[at]
        logs = torch.clamp(exps, min=torch.finfo(buffer.dtype).tiny, out=buffer[: len(exps)]).log_()
        sums[at] = logs.mul_(exps).sum(1)
    chunk.grad[chunk.target] = own
    return chunk.total.log() - sums / chunk.total


def _entropy_from_product(chunk: _Chunk, hidden: Tensor, product: Tensor, bias: Tensor | None, head: Head) -> Tensor:
    """[K] entropy from G @ weight, which the gradient needs anyway: -log p - sum_j G_j z_j / s."""
    gap = _row_dot(hidden, product)
    if bias is not None:
        gap += chunk.grad @ bias.clamp(min=-1e30)
    entropy = -chunk.logprobs - gap * (head.scale / head.temperature) / chunk.total
    remote = (chunk.logprobs < -1e3).nonzero().squeeze(1)  # the two terms cancel there, or are infinite
    if len(remote):
        exps = chunk.grad[remote].clamp(min=0)  # the target's own E is 0
        entropy[remote] = chunk.total[remote].log() - torch.special.xlogy(exps, exps).sum(1) / chunk.total[remote]
    return entropy


def _remove_softcap(chunk: _Chunk, grad: Tensor, head: Head) -> Tensor:
    """grad times the slope of the soft cap, 1 - tanh^2, in place; uses up `shifted`."""
    assert chunk.shifted is not None
    assert head.softcap is not None
    tanh = chunk.shifted.clamp_(min=-1e30).add_(chunk.maximum[:, None]).mul_(head.temperature / head.softcap)
    return grad.mul_(tanh.square_().neg_().add_(1))


def _buffers(count: int, rows: int, weight: Tensor, pair: bool) -> list[Tensor]:
    return [weight.new_empty(min(rows, count), weight.shape[0]) for _ in range(2 if pair else 1)]


def score(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, head: Head, rows: Tensor | None
) -> Scores:
    dtype, size = compute_dtype(hidden, weight), chunk_rows(hidden.shape[1], head)
    weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    count = len(targets) if rows is None else len(rows)
    logprobs, entropy = hidden.new_empty(count, dtype=dtype), hidden.new_empty(count, dtype=dtype)
    buffers = _buffers(count, size, weight, pair=True)
    for at, index in _chunks(count, size, rows):
        chunk = _forward_chunk(hidden[index].to(dtype), weight, bias, targets[index], head, buffers)
        logprobs[at], entropy[at] = chunk.logprobs, _entropy(chunk)
    return Scores(logprobs, entropy, logprobs.new_empty(0))


def score_gradients(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    head: Head,
    rows: Tensor | None,
    scores: Scores,
    upstream: tuple[Tensor, Tensor | None],
    wanted: Wanted,
) -> Gradients:
    """Recompute the chosen rows' softmax and accumulate the gradients of an upstream [K] on log p
    and entropy.
    """
    grad_logprobs, grad_entropy = upstream
    out = gradients(hidden, weight, bias, wanted, head)
    dtype, size = compute_dtype(hidden, weight), chunk_rows(hidden.shape[1], head)
    weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    count = len(grad_logprobs)
    buffers = _buffers(count, size, weight, pair=head.softcap is not None or grad_entropy is not None)
    for at, index in _chunks(count, size, rows):
        part = hidden[index].to(dtype)
        chunk = _forward_chunk(part, weight, bias, targets[index], head, buffers)
        grad, factor = chunk.grad, -grad_logprobs[at] / chunk.total
        if grad_entropy is not None:
            # d entropy / dz_j = -p_j (log p_j + entropy); the row's factor is then 1 / s, its
            # coefficients inside grad.
            assert chunk.shifted is not None
            chunk.shifted.clamp_(min=-1e30)
            g_lp, g_h = grad_logprobs[at], grad_entropy[at]
            surprise = _entropy(chunk) - chunk.total.log()
            own = g_lp * chunk.rest - g_h * chunk.exp_target * (chunk.shifted[chunk.target] + surprise)
            slope = (chunk.shifted + surprise[:, None]).mul_(g_h[:, None]).add_(g_lp[:, None])
            grad = grad.mul_(slope).neg_()
            grad[chunk.target] = own
            factor = 1 / chunk.total
        if head.softcap is not None:
            grad = _remove_softcap(chunk, grad, head)
        rows_of = None if grad_entropy is not None else Rows(targets[index], grad_logprobs[at], chunk.logprobs)
        out.add(index, grad, part, weight, head.scale / head.temperature, factor, rows_of)
    return out


def loss(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, plan: LossPlan, wanted: Wanted
) -> tuple[PlanResult, Gradients]:
    """Loss and per-row results over the plan's rows, with the gradients for an upstream gradient of
    1.
    """
    head, dtype = plan.head, compute_dtype(hidden, weight)
    size, count = chunk_rows(hidden.shape[1], head), len(plan.weights)
    grads = gradients(hidden, weight, bias, wanted, head)
    weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    entropy_from_gemm = wanted[0] and head.softcap is None
    losses, logprobs, entropy, coefficients = (hidden.new_empty(count, dtype=dtype) for _ in range(4))
    buffers = _buffers(count, size, weight, pair=not entropy_from_gemm)
    for at, index in _chunks(count, size, plan.rows):
        part = hidden[index].to(dtype)
        chunk = _forward_chunk(part, weight, bias, plan.targets[index], head, buffers)
        per_token = {name: None if x is None else x[at] for name, x in plan.per_token.items()}
        logprobs[at] = chunk.logprobs
        losses[at], coefficients[at] = losses_and_coefficients(plan.objective, chunk.logprobs, per_token)
        if not entropy_from_gemm:
            entropy[at] = _entropy(chunk)
        rows = Rows(plan.targets[index], coefficients[at] * plan.weights[at], chunk.logprobs)
        grad, factor = chunk.grad, -rows.upstream / chunk.total
        if head.softcap is not None and any(wanted):
            grad = _remove_softcap(chunk, grad, head)
        product = grads.add(index, grad, part, weight, head.scale / head.temperature, factor, rows)
        if entropy_from_gemm:  # there is no whole product where columns were left out
            entropy[at] = (
                _entropy_from_exps(chunk)
                if product is None
                else _entropy_from_product(chunk, part, product, bias, head)
            )
    return PlanResult((losses * plan.weights).sum(), logprobs, entropy, coefficients), grads


def logits_loss(logits: Tensor, plan: LossPlan, grad: Tensor | None) -> tuple[PlanResult, Tensor | None]:
    """The loss on logits [N, V] and its gradient into `grad`, which may be the logits: one chunk of
    rows in the compute dtype at a time.
    """
    dtype, count = compute_dtype(logits, logits), len(plan.weights)
    unit = unit_of(logits.dtype, plan.weights, plan.per_token["advantages"])
    size = plan.head.chunk_rows or max(1, (1 << 23) // logits.shape[1])
    losses, logprobs, entropy, coefficients = (logits.new_empty(count, dtype=dtype) for _ in range(4))
    buffer = logits.new_empty(min(size, count), logits.shape[1], dtype=dtype)
    for at, index in _chunks(count, size, plan.rows):
        chunk = _softmax(logits[index].to(dtype) / plan.head.temperature, plan.targets[index], buffer)
        per_token = {name: None if x is None else x[at] for name, x in plan.per_token.items()}
        logprobs[at], entropy[at] = chunk.logprobs, _entropy(chunk)
        losses[at], coefficients[at] = losses_and_coefficients(plan.objective, chunk.logprobs, per_token)
        if grad is not None:
            factor = -coefficients[at] * plan.weights[at] / (chunk.total * plan.head.temperature)
            factor = factor if unit is None else factor / unit
            grad[index] = chunk.grad.mul_(factor[:, None]).to(grad.dtype)
    if grad is not None and plan.rows is not None:
        skipped = torch.ones(len(logits), dtype=torch.bool, device=logits.device).index_fill_(0, plan.rows, False)
        grad[skipped] = 0
    return PlanResult((losses * plan.weights).sum(), logprobs, entropy, coefficients), unit


def scale_(values: Tensor, scale: Tensor) -> None:
    for part in values.split(256):  # fp32: a scalar tensor would be rounded to values' dtype first
        part.copy_(part.to(scale.dtype) * scale)


ENGINE = Engine("chunked", score, score_gradients, loss, logits_loss, scale_)
