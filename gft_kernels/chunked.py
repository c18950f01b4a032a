"""The chunked backend in plain PyTorch: any device, no [N, V] tensor, gradients of the fused loss formed in the forward.

For a chunk of K rows, with E_j = exp(z_j - max z) and the target's own entry taken out of the sum,

    rest = sum_{j != y} E_j        s = rest + E_y        log p = -log1p(rest / E_y)        1 - p = rest / s
    G_j  = E_j for j != y, G_y = -rest                   so that dz = -(coef / s) * G, row by row
    dhidden = f * (G @ W)          dweight += G^T @ (f * hidden)          f = -coef * w / s
    entropy = -log p - (hidden . (G @ W) + G @ bias) / s

The coefficient touches only [K, D] factors: after exp and sum, no pass over [K, V] remains but the GEMMs. 1 - p is a sum of
positive terms, exact for confident rows where 1 - exp(log p) has no digits left, and the entropy is free of charge.

Cost: fused loss 6KDV for K active rows; log-prob op 2NDV forward, 6KDV backward for K rows with an upstream gradient.
Memory: chunk * V (twice for softcap and the log-prob forward, three times for entropy gradients), dweight in fp32, and for 16-bit inputs
an fp32 copy of the weight (logits are never rounded to 16 bits).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .head import Head, LogProbs
from .objectives import losses_and_coefficients
from .plan import Backend, LossPlan, PlanResult, compute_dtype

Index = slice | Tensor


def chunk_rows(hidden_size: int, head: Head) -> int:
    """Rows a chunk: the chunk's [K, V] stays at a quarter of the size of dweight [V, D], within 128 to 4096 rows."""
    return head.chunk_rows or min(max(hidden_size // 4, 128), 4096)


def _chunks(count: int, size: int, rows: Tensor | None) -> list[tuple[slice, Index]]:
    """(position among the chosen rows, index into [N]) of every chunk; slices where all rows are chosen: no gather."""
    positions = [slice(i, min(i + size, count)) for i in range(0, count, size)]
    return [(p, p if rows is None else rows[p]) for p in positions]


@dataclass
class _Chunk:
    """The softmax of one chunk of rows, held as unnormalised exponentials."""

    hidden: Tensor  # [K, D] so that dz = hidden @ dweight^T: scale and temperature folded in
    grad: Tensor  # [K, V] G above
    rest: Tensor  # [K]
    exp_target: Tensor  # [K] E_y
    total: Tensor  # [K] s = rest + E_y
    logprobs: Tensor  # [K]
    shifted: Tensor | None  # [K, V] z - max z, where asked for
    maximum: Tensor  # [K]
    target: tuple[Tensor, Tensor]  # index of the target's entry of each row


def _forward_chunk(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, head: Head, buffers: list[Tensor]) -> _Chunk:
    """Logits, transforms and exponentials of one chunk; a second buffer asks for `shifted`."""
    at_target = (torch.arange(len(targets), device=targets.device), targets)
    factor = head.scale if head.softcap is not None else head.scale / head.temperature
    z = torch.mm(hidden * factor, weight.T, out=buffers[0][: len(targets)])
    if bias is not None:
        z.add_(bias * factor)
    if head.softcap is not None:
        z.div_(head.softcap).tanh_().mul_(head.softcap / head.temperature)
    maximum = z.amax(1)
    z.sub_(maximum[:, None])
    target_logit = z[at_target]
    shifted = None
    if len(buffers) > 1:
        # 0 * -inf is NaN in the entropy sum; a large finite number has the same exponential, 0.
        shifted = torch.clamp(z, min=-1e30, out=buffers[1][: len(targets)])
    z.exp_()
    exp_target = z[at_target]
    z[at_target] = 0
    rest = z.sum(1)
    total = rest + exp_target
    logprobs = torch.where(exp_target > 0.5, -torch.log1p(rest / exp_target), target_logit - total.log())
    z[at_target] = -rest
    return _Chunk(hidden * (head.scale / head.temperature), z, rest, exp_target, total, logprobs, shifted, maximum, at_target)


def _row_dot(a: Tensor, b: Tensor) -> Tensor:
    """[K] sums of a * b over each row without the [K, V] product in memory, in tiles: one long fp32 dot loses two digits."""
    tiles = zip(a.split(512, 1), b.split(512, 1), strict=True)
    return torch.stack([torch.bmm(x[:, None], y[:, :, None]).flatten() for x, y in tiles]).sum(0)


def _entropy(chunk: _Chunk) -> Tensor:
    """[K] entropy from the shifted logits: log s - sum_j E_j (z_j - max z) / s."""
    assert chunk.shifted is not None
    own = chunk.shifted[chunk.target]
    chunk.shifted[chunk.target] = 0
    others = _row_dot(chunk.grad, chunk.shifted)
    chunk.shifted[chunk.target] = own
    return chunk.total.log() - (others + chunk.exp_target * own) / chunk.total


def _entropy_from_product(chunk: _Chunk, product: Tensor, bias: Tensor | None, head: Head) -> Tensor:
    """[K] entropy from G @ weight, which the gradient needs anyway: -log p - sum_j G_j z_j / s."""
    gap = _row_dot(chunk.hidden, product)
    if bias is not None:
        gap += chunk.grad @ bias.clamp(min=-1e30) * (head.scale / head.temperature)
    entropy = -chunk.logprobs - gap / chunk.total
    remote = (chunk.logprobs < -1e3).nonzero().squeeze(1)  # the two terms cancel there, or are infinite
    if len(remote):
        exps = chunk.grad[remote].clamp(min=0)  # the target's own E is 0
        entropy[remote] = chunk.total[remote].log() - torch.special.xlogy(exps, exps).sum(1) / chunk.total[remote]
    return entropy


class _Gradients:
    """Accumulators of dhidden, dweight and dbias in the compute dtype; what nobody wants is never allocated."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, wanted: tuple[bool, bool, bool]) -> None:
        dtype = compute_dtype(hidden, weight)
        self.wanted = wanted
        self.hidden = torch.zeros_like(hidden, dtype=dtype) if wanted[0] else None
        self.weight = torch.zeros_like(weight, dtype=dtype) if wanted[1] else None
        self.bias = torch.zeros_like(bias, dtype=dtype) if wanted[2] and bias is not None else None

    def add(self, index: Index, chunk: _Chunk, grad: Tensor, factor: Tensor, weight: Tensor, head: Head) -> Tensor | None:
        """Add dz = factor * grad of one chunk; returns grad @ weight [K, D] where dhidden is wanted."""
        if head.softcap is not None:
            assert chunk.shifted is not None
            tanh = chunk.shifted.add_(chunk.maximum[:, None]).mul_(head.temperature / head.softcap)
            grad = grad.mul_(tanh.square_().neg_().add_(1))
        slope = head.scale / head.temperature
        product = None
        if self.hidden is not None:
            product = grad @ weight
            self.hidden[index] = product * (factor * slope)[:, None]
        if self.weight is not None:
            self.weight.addmm_(grad.T, chunk.hidden * factor[:, None])
        if self.bias is not None:
            self.bias.addmv_(grad.T, factor * slope)
        return product


def _buffers(count: int, rows: int, weight: Tensor, pair: bool) -> list[Tensor]:
    return [weight.new_empty(min(rows, count), weight.shape[0]) for _ in range(2 if pair else 1)]


def _logprob_gradients(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, head: Head,
    rows: Tensor | None, grad_logprobs: Tensor, grad_entropy: Tensor | None, wanted: tuple[bool, bool, bool],
) -> _Gradients:  # fmt: skip
    """Recompute the chosen rows' softmax and accumulate the gradients of an upstream [K] on log p and entropy."""
    out = _Gradients(hidden, weight, bias, wanted)
    dtype, size = compute_dtype(hidden, weight), chunk_rows(hidden.shape[1], head)
    weight_c, bias_c = weight.to(dtype), None if bias is None else bias.to(dtype)
    count = len(grad_logprobs)
    buffers = _buffers(count, size, weight_c, pair=head.softcap is not None or grad_entropy is not None)
    for position, index in _chunks(count, size, rows):
        chunk = _forward_chunk(hidden[index].to(dtype), weight_c, bias_c, targets[index], head, buffers)
        grad, factor = chunk.grad, -grad_logprobs[position] / chunk.total
        if grad_entropy is not None:
            # d entropy / dz_j = -p_j (log p_j + entropy); the row's factor is then 1 / s, its coefficients inside grad.
            assert chunk.shifted is not None
            g_lp, g_h = grad_logprobs[position], grad_entropy[position]
            surprise = _entropy(chunk) - chunk.total.log()
            own = g_lp * chunk.rest - g_h * chunk.exp_target * (chunk.shifted[chunk.target] + surprise)
            slope = (chunk.shifted + surprise[:, None]).mul_(g_h[:, None]).add_(g_lp[:, None])
            grad = grad.mul_(slope).neg_()
            grad[chunk.target] = own
            factor = 1 / chunk.total
        out.add(index, chunk, grad, factor, weight_c, head)
    return out


def _nonzero_rows(*grads: Tensor | None) -> Tensor | None:
    """Rows where some upstream gradient is not 0 (NaN counts as not 0); None for all."""
    live = torch.stack([g != 0 for g in grads if g is not None]).any(0)
    return None if bool(live.all()) else live.nonzero().squeeze(1)


class _LogProb(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, head):
        dtype, size = compute_dtype(hidden, weight), chunk_rows(hidden.shape[1], head)
        weight_c, bias_c = weight.to(dtype), None if bias is None else bias.to(dtype)
        valid = targets != head.ignore_index
        rows = None if bool(valid.all()) else valid.nonzero().squeeze(1)
        count = len(targets) if rows is None else len(rows)
        logprobs, entropy = hidden.new_zeros(len(targets), dtype=dtype), hidden.new_zeros(len(targets), dtype=dtype)
        buffers = _buffers(count, size, weight_c, pair=True)
        for _, index in _chunks(count, size, rows):
            chunk = _forward_chunk(hidden[index].to(dtype), weight_c, bias_c, targets[index], head, buffers)
            logprobs[index], entropy[index] = chunk.logprobs, _entropy(chunk)
        ctx.head = head
        ctx.save_for_backward(hidden, weight, bias, targets)
        return logprobs, entropy

    @staticmethod
    def backward(ctx, grad_logprobs, grad_entropy):
        _refuse_double_backward()
        hidden, weight, bias, targets = ctx.saved_tensors
        valid = targets != ctx.head.ignore_index
        grad_logprobs = torch.where(valid, grad_logprobs, 0)
        grad_entropy = torch.where(valid, grad_entropy, 0)
        if not bool((grad_entropy != 0).any()):
            grad_entropy = None
        rows = _nonzero_rows(grad_logprobs, grad_entropy)
        if rows is not None:
            grad_logprobs, grad_entropy = grad_logprobs[rows], None if grad_entropy is None else grad_entropy[rows]
        with torch.autocast(hidden.device.type, enabled=False):
            grads = _logprob_gradients(hidden, weight, bias, targets, ctx.head, rows, grad_logprobs, grad_entropy, ctx.needs_input_grad[:3])
        return *_cast(grads, hidden, weight, bias), None, None


def _refuse_double_backward() -> None:
    """Gradients of these gradients do not exist, and autograd would leave them out in silence."""
    if torch.is_grad_enabled():
        raise RuntimeError("the chunked head is differentiable once: for create_graph=True use backend='eager'.")


def _cast(grads: _Gradients, *inputs: Tensor | None) -> tuple[Tensor | None, ...]:
    found = (grads.hidden, grads.weight, grads.bias)
    return tuple(None if g is None or x is None else g.to(x.dtype) for g, x in zip(found, inputs, strict=True))


class _PolicyLoss(torch.autograd.Function):
    """Forms the gradients for an upstream gradient of 1 while the chunk's exponentials are at hand.

    The first backward scales and hands them over; a further one (retain_graph) recomputes them.
    """

    @staticmethod
    def forward(ctx, hidden, weight, bias, plan, grad_enabled):
        head, dtype = plan.head, compute_dtype(hidden, weight)
        size, count = chunk_rows(hidden.shape[1], head), len(plan.weights)
        weight_c, bias_c = weight.to(dtype), None if bias is None else bias.to(dtype)
        grads = _Gradients(hidden, weight, bias, tuple(grad_enabled and need for need in ctx.needs_input_grad[:3]))
        entropy_from_gemm = grads.wanted[0] and head.softcap is None
        losses, logprobs, entropy, coefficients = (hidden.new_empty(count, dtype=dtype) for _ in range(4))
        buffers = _buffers(count, size, weight_c, pair=not entropy_from_gemm)
        for at, index in _chunks(count, size, plan.rows):
            chunk = _forward_chunk(hidden[index].to(dtype), weight_c, bias_c, plan.targets[index], head, buffers)
            per_token = {name: None if x is None else x[at] for name, x in plan.per_token.items()}
            logprobs[at] = chunk.logprobs
            losses[at], coefficients[at] = losses_and_coefficients(plan.objective, chunk.logprobs, per_token)
            if not entropy_from_gemm:
                entropy[at] = _entropy(chunk)
            factor = -coefficients[at] * plan.weights[at] / chunk.total
            product = grads.add(index, chunk, chunk.grad, factor, weight_c, head)
            if product is not None and entropy_from_gemm:
                entropy[at] = _entropy_from_product(chunk, product, bias_c, head)
        ctx.grads, ctx.plan = grads, plan
        ctx.save_for_backward(hidden, weight, bias, coefficients * plan.weights)
        ctx.mark_non_differentiable(logprobs, entropy, coefficients)
        return (losses * plan.weights).sum(), logprobs, entropy, coefficients

    @staticmethod
    def backward(ctx, grad_loss, *_):
        _refuse_double_backward()
        hidden, weight, bias, upstream = ctx.saved_tensors
        grads, ctx.grads = ctx.grads, None
        with torch.autocast(hidden.device.type, enabled=False):
            if grads is None:
                plan = ctx.plan
                grads = _logprob_gradients(
                    hidden, weight, bias, plan.targets, plan.head, plan.rows, upstream, None, ctx.needs_input_grad[:3]
                )
            for gradient in (grads.hidden, grads.weight, grads.bias):
                if gradient is not None:
                    gradient.mul_(grad_loss)  # before the cast: a loss scale must reach fp16 gradients in fp32
        return *_cast(grads, hidden, weight, bias), None, None


def linear_logprob(hidden: Tensor, weight: Tensor, targets: Tensor, head: Head) -> LogProbs:
    with torch.autocast(hidden.device.type, enabled=False):
        return LogProbs(*_LogProb.apply(hidden, weight, head.bias, targets, head))


def policy_loss(hidden: Tensor, weight: Tensor, plan: LossPlan) -> PlanResult:
    with torch.autocast(hidden.device.type, enabled=False):
        return PlanResult(*_PolicyLoss.apply(hidden, weight, plan.head.bias, plan, torch.is_grad_enabled()))


BACKEND = Backend("chunked", linear_logprob, policy_loss)
