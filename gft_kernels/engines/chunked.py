"""The chunked engine in plain PyTorch: any device, no [N, V] tensor.

For a chunk of K rows, with E_j = exp(z_j - max z) and the target's own entry taken out of the sum,

    rest = sum_{j != y} E_j        s = rest + E_y        log p = -log1p(rest / E_y)        1 - p = rest / s
    G_j  = E_j for j != y, G_y = -rest                   so that dz = -(coef / s) * G, row by row
    dhidden = f * (G @ W)          dweight += G^T @ (f * hidden)          f = -coef * w / s
    entropy = -log p - (hidden . (G @ W) + low_hidden . (G @ low_weight) + G @ bias) / s

The gradients of the fused loss are formed in its forward. The coefficient touches only [K, D]
factors, so after exp and sum nothing goes over [K, V] but the GEMMs. 1 - p is a sum of positive
terms. It keeps its digits for confident rows, where 1 - exp(log p) has none left. The entropy comes
from a product that the gradient needs anyway.

Cost: fused loss 6KDV for K active rows; log-prob op 2NDV forward, and 6KDV backward for K rows with
an upstream gradient. Memory: chunk * V numbers (twice for softcap and the log-prob forward, three
times for entropy gradients), dweight in fp32, and for 16-bit inputs an fp32 copy of the weight,
because logits are never rounded to 16 bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..head import Backend, Head, Operands
from ..losses.advantages import GroupRewards
from ..losses.objectives import losses_and_coefficients, part
from .accumulate import ChunkGradient, Gradients, Index, Products, Rows, Wanted, unit_of
from .columns import look, look_capped
from .contract import LossPlan, LossRows, Plan, Scores, Upstream
from .shard import ShardEntries
from .sparse import SparseGradients

name = "chunked"
recorded = False


def chunk_rows(hidden_size: int, backend: Backend) -> int:
    """Rows a chunk: its [K, V] stays at a quarter of the size of dweight [V, D].

    Never fewer than 128 (sparse: 256), never more than 4096.
    """
    return backend.chunk_rows or min(max(hidden_size // 4, 128 if backend.sparsity is None else 256), 4096)


def _chunks(count: int, size: int, rows: Tensor | None) -> list[tuple[slice, Index]]:
    """(slice of the chosen rows, their index among all rows: a slice too where all are chosen)."""
    slices = [slice(i, min(i + size, count)) for i in range(0, count, size)]
    return [(at, at if rows is None else rows[at]) for at in slices]


class Entries:
    """The targets' entries of a chunk [K, V]; `ShardEntries` where ranks share the vocabulary."""

    def __init__(self, targets: Tensor) -> None:
        self.index = (torch.arange(len(targets), device=targets.device), targets)

    def read(self, z: Tensor) -> Tensor:  # [K]
        return z[self.index]

    def write(self, z: Tensor, values: Tensor) -> None:
        z[self.index] = values

    def largest(self, values: Tensor) -> Tensor:
        return values

    def total(self, *sums: Tensor) -> tuple[Tensor, ...]:
        return sums


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
    target: Entries | ShardEntries
    target_logit: Tensor  # [K] z_y - max z, finite


def _forward_chunk(operands: Operands, targets: Tensor, head: Head, buffers: list[Tensor]) -> _Chunk:
    """Logits, transforms and exponentials of one chunk. A second buffer asks for `shifted`."""
    hidden, weight, bias, low_hidden, low_weight = operands
    factor = head.scale if head.softcap is not None else head.scale / head.temperature
    z = torch.mm(hidden * factor, weight.T, out=buffers[0][: len(targets)])
    if low_hidden is not None and low_weight is not None:
        z.addmm_(low_hidden * factor, low_weight.T)
    if bias is not None:
        z.add_(bias * factor)
    if head.softcap is not None:
        z.div_(head.softcap).tanh_().mul_(head.softcap / head.temperature)
    target = Entries(targets) if head.shard is None else ShardEntries(targets, head.shard, len(weight))
    return _softmax(z, target, buffers[1] if len(buffers) > 1 else None)


def _softmax(z: Tensor, target: Entries | ShardEntries, exps: Tensor | None = None) -> _Chunk:
    """Logits [K, V] to exponentials, in place. With `exps` they go there, and z - max z stays."""
    maximum = target.largest(z.amax(1))
    z.sub_(maximum[:, None])
    target_logit = target.read(z)
    shifted = None if exps is None else z
    z = z.exp_() if exps is None else torch.exp(z, out=exps[: len(z)])
    exp_target = target.read(z)
    target.write(z, torch.zeros_like(exp_target))
    rest, exp_target, target_logit = target.total(z.sum(1), exp_target, target_logit)
    total = rest + exp_target
    logprobs = torch.where(exp_target > 0.5, -torch.log1p(rest / exp_target), target_logit - total.log())
    target.write(z, -rest)
    return _Chunk(z, rest, exp_target, total, logprobs, shifted, maximum, target, target_logit.clamp(min=-1e30))


def _row_dot(a: Tensor, b: Tensor) -> Tensor:
    """[K] sums of a * b over each row, without the [K, V] product in memory.

    They are taken in tiles, because one long fp32 dot loses two digits.
    """
    tiles = zip(a.split(512, 1), b.split(512, 1), strict=True)
    return torch.stack([torch.bmm(x[:, None], y[:, :, None]).flatten() for x, y in tiles]).sum(0)


def _entropy(chunk: _Chunk) -> Tensor:
    """[K] entropy from the shifted logits: log s - sum_j E_j (z_j - max z) / s."""
    assert chunk.shifted is not None
    chunk.target.write(chunk.shifted, torch.zeros_like(chunk.target_logit))
    others = _row_dot(chunk.grad, chunk.shifted)
    broken = others.isnan().nonzero().squeeze(1)
    if broken.numel():  # 0 * -inf; a large finite number has the same exponential, 0
        others[broken] = _row_dot(chunk.grad[broken], chunk.shifted[broken].clamp(min=-1e30))
    chunk.target.write(chunk.shifted, chunk.target_logit)
    (others,) = chunk.target.total(others)
    return chunk.total.log() - (others + chunk.exp_target * chunk.target_logit) / chunk.total


def _entropy_from_exps(chunk: _Chunk, rows: Index = slice(None)) -> Tensor:
    """[K] entropy from the exponentials alone: log s - sum_j E_j log E_j / s."""
    entr = torch.special.entr  # -x log x; 16 rows at a time stay in cache, and the target's entry counts 0
    (sums,) = chunk.target.total(torch.cat([entr(x.clamp(min=0)).sum(1) for x in chunk.grad[rows].split(16)]))
    return chunk.total[rows].log() + (sums + entr(chunk.exp_target[rows])) / chunk.total[rows]


def _entropy_from_gemm(chunk: _Chunk, operands: Operands, products: Products, slope: float) -> Tensor:
    """[K] entropy from G @ weight, which the gradient needs anyway: -log p - sum_j G_j z_j / s."""
    hidden, _, bias, low_hidden, low_weight = operands
    assert products.hidden is not None
    gap = _row_dot(hidden, products.hidden)
    if low_hidden is not None and low_weight is not None:
        low = chunk.grad @ low_weight if products.low_hidden is None else products.low_hidden
        gap += _row_dot(low_hidden, low)
    if bias is not None:
        gap += chunk.grad @ bias.clamp(min=-1e30)
    (gap,) = chunk.target.total(gap)
    entropy = -chunk.logprobs - gap * slope / chunk.total
    remote = (chunk.logprobs < -1e3).nonzero().squeeze(1)  # the two terms cancel there, or are infinite
    if len(remote):
        entropy[remote] = _entropy_from_exps(chunk, remote)
    return entropy


def _remove_softcap(chunk: _Chunk, grad: Tensor, head: Head) -> Tensor:
    """grad times the slope of the soft cap, 1 - tanh^2, in place. Uses up `shifted`."""
    assert chunk.shifted is not None and head.softcap is not None  # noqa: PT018
    tanh = chunk.shifted.clamp_(min=-1e30).add_(chunk.maximum[:, None]).mul_(head.temperature / head.softcap)
    return grad.mul_(tanh.square_().neg_().add_(1))


def _buffers(count: int, rows: int, weight: Tensor, pair: bool) -> list[Tensor]:
    return [weight.new_empty(min(rows, count), weight.shape[0]) for _ in range(2 if pair else 1)]


def _wide(operands: Operands, plan: Plan) -> Operands:
    """The weights in the compute dtype. Hidden states follow, chunk by chunk."""
    return _take(operands, slice(0), plan)._replace(hidden=operands.hidden, low_hidden=operands.low_hidden)


def _take(operands: Operands, row_index: Index, plan: Plan) -> Operands:
    """The head on some rows, all of it in the compute dtype."""
    hidden, weight, bias, low_hidden, low_weight = operands
    low_hidden = None if low_hidden is None else low_hidden[row_index]
    given: Any = (hidden[row_index], weight, bias, low_hidden, low_weight)
    return Operands._make(None if x is None else x.to(plan.dtype) for x in given)


def _gradients(operands: Operands, plan: Plan, wanted: Wanted) -> Gradients:
    """The sums of this call, exact or over the columns that count."""
    if plan.backend.sparsity is None:
        return Gradients(operands, wanted, shard=plan.head.shard)
    looked = look if plan.head.softcap is None else look_capped
    return SparseGradients(operands, wanted, sparse=plan.backend.sparsity, look=looked)


def group_advantages(groups: GroupRewards) -> Tensor:
    return groups.per_sequence()


def score(operands: Operands, plan: Plan) -> Scores:
    hidden, wide, targets = operands.hidden, _wide(operands, plan), plan.targets
    size, count = chunk_rows(hidden.shape[1], plan.backend), len(targets if plan.rows is None else plan.rows)
    logprobs, entropy = (hidden.new_empty(count, dtype=plan.dtype) for _ in range(2))
    buffers = _buffers(count, size, wide.weight, pair=True)
    for at, row_index in _chunks(count, size, plan.rows):
        chunk = _forward_chunk(_take(wide, row_index, plan), targets[row_index], plan.head, buffers)
        logprobs[at], entropy[at] = chunk.logprobs, _entropy(chunk)
    return Scores(logprobs, entropy, logprobs.new_empty(0))


def score_gradients(operands: Operands, plan: Plan, scores: Scores, upstream: Upstream, wanted: Wanted) -> Gradients:
    """Recompute the chosen rows' softmax and add up the gradients of log p and entropy."""
    head, hidden, wide = plan.head, operands.hidden, _wide(operands, plan)
    grads = _gradients(operands, plan, wanted)
    size, count = chunk_rows(hidden.shape[1], plan.backend), len(upstream.logprobs)
    buffers = _buffers(count, size, wide.weight, pair=head.softcap is not None or upstream.entropy is not None)
    for at, row_index in _chunks(count, size, plan.rows):
        taken, targets = _take(wide, row_index, plan), plan.targets[row_index]
        chunk = _forward_chunk(taken, targets, head, buffers)
        if upstream.entropy is None:
            grad, factor = chunk.grad, -upstream.logprobs[at] / chunk.total
            rows = Rows(targets, upstream.logprobs[at], chunk.logprobs)
        else:  # grad holds both coefficients of a row and may have either sign, so the factor is 1 / s
            grad, factor = _with_entropy(chunk, upstream.logprobs[at], upstream.entropy[at]), 1 / chunk.total
            rows = None
        if head.softcap is not None:
            grad = _remove_softcap(chunk, grad, head)
        grads.add(ChunkGradient(row_index, taken, grad, factor, head.scale / head.temperature, rows))
    return grads


def _with_entropy(chunk: _Chunk, grad_logprobs: Tensor, grad_entropy: Tensor) -> Tensor:
    """s times dz of upstream gradients on log p and entropy, in place.

    d entropy / dz_j = -p_j (log p_j + entropy).
    """
    assert chunk.shifted is not None
    chunk.shifted.clamp_(min=-1e30)
    surprise = _entropy(chunk) - chunk.total.log()
    own = grad_logprobs * chunk.rest - grad_entropy * chunk.exp_target * (chunk.target_logit + surprise)
    slope = (chunk.shifted + surprise[:, None]).mul_(grad_entropy[:, None]).add_(grad_logprobs[:, None])
    grad = chunk.grad.mul_(slope).neg_()
    chunk.target.write(grad, own)
    return grad


def loss(operands: Operands, plan: LossPlan, wanted: Wanted) -> tuple[LossRows, Gradients]:
    head, hidden, wide = plan.head, operands.hidden, _wide(operands, plan)
    grads = _gradients(operands, plan, wanted)
    size, count = chunk_rows(hidden.shape[1], plan.backend), len(plan.weights)
    entropy_from_gemm = wanted[0] and head.softcap is None
    losses, logprobs, entropy, coefficients = (hidden.new_empty(count, dtype=plan.dtype) for _ in range(4))
    buffers = _buffers(count, size, wide.weight, pair=not entropy_from_gemm)
    for at, row_index in _chunks(count, size, plan.rows):
        taken, targets = _take(wide, row_index, plan), plan.targets[row_index]
        chunk = _forward_chunk(taken, targets, head, buffers)
        logprobs[at] = chunk.logprobs
        losses[at], coefficients[at] = losses_and_coefficients(plan.objective, chunk.logprobs, part(plan.per_token, at))
        if not entropy_from_gemm:
            entropy[at] = _entropy(chunk)
        rows = Rows(targets, coefficients[at] * plan.weights[at], chunk.logprobs)
        grad, factor = chunk.grad, -rows.upstream / chunk.total
        if head.softcap is not None and any(wanted):
            grad = _remove_softcap(chunk, grad, head)
        slope = head.scale / head.temperature
        products = grads.add(ChunkGradient(row_index, taken, grad, factor, slope, rows))
        if entropy_from_gemm:  # there is no whole product where columns were left out
            whole = products.hidden is not None
            entropy[at] = _entropy_from_gemm(chunk, taken, products, slope) if whole else _entropy_from_exps(chunk)
    return LossRows((losses * plan.weights).sum(), logprobs, entropy, coefficients), grads


def logits_loss(logits: Tensor, plan: LossPlan, grad: Tensor | None) -> tuple[LossRows, Tensor | None]:
    """The fused loss from logits. A chunk's gradient is written before the next chunk is read."""
    count, unit = len(plan.weights), unit_of(logits.dtype, plan.weights, plan.per_token["advantages"])
    size = plan.backend.chunk_rows or max(1, (1 << 23) // logits.shape[1])
    losses, logprobs, entropy, coefficients = (logits.new_empty(count, dtype=plan.dtype) for _ in range(4))
    buffer = logits.new_empty(min(size, count), logits.shape[1], dtype=plan.dtype)
    for at, row_index in _chunks(count, size, plan.rows):
        z = logits[row_index].to(plan.dtype) / plan.head.temperature
        chunk = _softmax(z, Entries(plan.targets[row_index]), buffer)
        logprobs[at], entropy[at] = chunk.logprobs, _entropy(chunk)
        losses[at], coefficients[at] = losses_and_coefficients(plan.objective, chunk.logprobs, part(plan.per_token, at))
        if grad is not None:
            factor = -coefficients[at] * plan.weights[at] / (chunk.total * plan.head.temperature)
            factor = factor if unit is None else factor / unit
            grad[row_index] = chunk.grad.mul_(factor[:, None]).to(grad.dtype)
    if grad is not None and plan.rows is not None:
        skipped = torch.ones(len(logits), dtype=torch.bool, device=logits.device).index_fill_(0, plan.rows, False)
        grad[skipped] = 0
    return LossRows((losses * plan.weights).sum(), logprobs, entropy, coefficients), unit


def scale_(values: Tensor, scale: Tensor) -> None:
    for some in values.split(256):  # fp32: a scalar tensor would be rounded to values' dtype first
        some.copy_(some.to(scale.dtype) * scale)
