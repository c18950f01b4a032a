"""The Triton engine on the host: chunks of rows, kernels between library GEMMs.

    fused loss      target logits, forward (stores exps), finalise, rescale, then dhidden and dweight GEMMs: 6KDV
    log-prob op     target logits, forward (stores nothing), finalise: 2NDV; its backward recomputes: 6KDV

K is the number of active rows, or of rows with an upstream gradient.

Memory: one chunk of exponentials (at most CHUNK_BYTES), 12 bytes a row and tile, dweight in fp32.
No atomics.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
import triton
from torch import Tensor

from ...head import Backend, Operands
from ...losses.advantages import GroupRewards
from ...losses.objectives import losses_and_coefficients, part
from ..accumulate import ChunkGradient, Gradients, Index, Rows, Wanted, unit_of
from ..contract import LossPlan, LossRows, Plan, Scores, Upstream
from ..shard import local_targets, merged, own_logits
from ..sparse import SparseGradients
from . import advantages, interpreter
from . import logits as kernels
from .arguments import given_arguments, loss_arguments
from .backward import head_backward
from .column_stats import look
from .configs import accumulator, config_for, pad
from .finalise import RowTerms, finalise
from .forward import head_forward, head_target_logit
from .rescale import rescale

name = "triton"
recorded = False
CHUNK_BYTES = 3 << 28  # three chunks at 8192 rows of 131,072 columns in 16 bits: all but dweight stays under 1.1 GiB


def _refuse_without_device(tensor: Tensor) -> None:
    if tensor.device.type != "cuda" and not interpreter.ACTIVE:
        raise ValueError(
            f"backend = 'triton' needs CUDA or ROCm tensors, got {tensor.device}: use backend='chunked' there "
            "(TRITON_INTERPRET=1, set before the import, runs the kernels on a CPU, slowly)."
        )


def _common(operands: Operands) -> Operands:
    """The operands in the wider dtype (fp16 with bf16: fp32), weight columns adjacent."""
    _refuse_without_device(operands.hidden)
    dtype = torch.promote_types(operands.hidden.dtype, operands.weight.dtype)
    bias = None if operands.bias is None else operands.bias.contiguous()
    hidden, weight, _, low_hidden, low_weight = (None if x is None else x.to(dtype) for x in operands)
    assert hidden is not None
    assert weight is not None
    low_weight = None if low_weight is None else _columns_adjacent(low_weight)
    return Operands(hidden, _columns_adjacent(weight), bias, low_hidden, low_weight)


def _columns_adjacent(weight: Tensor) -> Tensor:
    return weight if weight.stride(1) == 1 else weight.contiguous()


def _on(device: torch.device) -> AbstractContextManager:
    """Triton launches on the current device: make it the tensors' own."""
    if interpreter.ACTIVE:
        # Before the first launch, and not at import: a program that only imports the package finds
        # Triton as it is, and none gets the wrong bf16 results of an interpreter as shipped.
        interpreter.repair()
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def chunk_rows(vocabulary: int, dtype: torch.dtype, backend: Backend) -> int:
    """Rows a chunk: as many exponentials as CHUNK_BYTES holds, in steps of 128 from 128 to 8192."""
    return backend.chunk_rows or min(max(CHUNK_BYTES // (pad(vocabulary) * dtype.itemsize) // 128 * 128, 128), 8192)


def _chunks(count: int, size: int, rows: Tensor | None) -> Iterator[tuple[slice, Index]]:
    """(slice of the chosen rows, their index among all rows) of each chunk.

    The chunks are the fewest, evenly filled.
    """
    if count > size:
        even = triton.cdiv(count, triton.cdiv(count, size))
        size = min(size, triton.cdiv(even, 128) * 128)
    for start in range(0, count, size):
        at = slice(start, min(start + size, count))
        yield at, at if rows is None else rows[at]


def _width(weight: Tensor, plan: Plan) -> int:
    """Columns that a chunk is sized by. Ranks that share a vocabulary need the same chunks."""
    return len(weight) if plan.head.shard is None else plan.head.shard.width


def _take(operands: Operands, targets: Tensor, row_index: Index) -> tuple[Operands, Tensor]:
    """The head and the targets of one chunk, its rows contiguous for the kernels."""
    low_hidden = None if operands.low_hidden is None else operands.low_hidden[row_index].contiguous()
    chunk = operands._replace(hidden=operands.hidden[row_index].contiguous(), low_hidden=low_hidden)
    return chunk, targets[row_index].contiguous()


def _gradients(operands: Operands, plan: Plan, wanted: Wanted, unit: Tensor | None) -> Gradients:
    """The sums of this call, exact or over the columns that count."""
    if plan.backend.sparsity is None:
        return Gradients(operands, wanted, unit, plan.head.shard)
    return SparseGradients(operands, wanted, unit, sparse=plan.backend.sparsity, look=look, probe=0)


def _buffer(rows: int, weight: Tensor) -> Tensor:  # [rows, V]
    """A buffer of the weight's dtype, its rows aligned."""
    return torch.empty(rows, pad(len(weight)), dtype=weight.dtype, device=weight.device)[:, : len(weight)]


def group_advantages(groups: GroupRewards) -> Tensor:
    _refuse_without_device(groups.rewards)
    with _on(groups.rewards.device):
        return advantages.group_advantages(groups)


def score(operands: Operands, plan: Plan) -> Scores:
    operands = _common(operands)
    hidden, head, count = operands.hidden, plan.head, len(plan.targets if plan.rows is None else plan.rows)
    columns = local_targets(plan.targets, head.shard, len(operands.weight))
    config = config_for(hidden.device, hidden.dtype, head)
    out = torch.empty(4, count, dtype=accumulator(hidden.dtype)[0], device=hidden.device)
    with _on(hidden.device):
        for at, row_index in _chunks(count, plan.backend.chunk_rows or 8192, plan.rows):
            chunk, targets = _take(operands, columns, row_index)
            target_logit = own_logits(head_target_logit(chunk, targets, head), targets, head.shard)
            partials = head_forward(chunk, targets, target_logit, None, head, config)
            out[:, at] = torch.stack(finalise(merged(partials, head.shard), target_logit, hidden.dtype, head)[:4])
    # Clones, because the results of a custom op may not be views of one tensor.
    return Scores(out[0].clone(), out[1].clone(), out[2:].clone())


def score_gradients(operands: Operands, plan: Plan, scores: Scores, upstream: Upstream, wanted: Wanted) -> Gradients:
    """Recompute the chosen rows' tiles and add up the gradients of log p and entropy."""
    operands = _common(operands)
    hidden, weight = operands[:2]
    upstream, unit = _in_units(upstream, hidden.dtype, scores.logprobs.dtype)
    grads = _gradients(operands, plan, wanted, unit)
    head, slope, count = plan.head, plan.head.scale / plan.head.temperature, len(upstream.logprobs)
    columns = local_targets(plan.targets, head.shard, len(weight))
    config = config_for(hidden.device, hidden.dtype, head, entropy=upstream.entropy is not None)
    size = chunk_rows(_width(weight, plan), hidden.dtype, plan.backend)
    buffer = _buffer(min(size, count), weight)
    with _on(hidden.device):
        for at, row_index in _chunks(count, size, plan.rows):
            chunk, targets = _take(operands, columns, row_index)
            dz, own = buffer[: at.stop - at.start], None
            found = Scores(scores.logprobs[at], scores.entropy[at], scores.normaliser[:, at].contiguous())
            given = Upstream(upstream.logprobs[at].contiguous(), None)
            if upstream.entropy is None:
                own = Rows(targets, given.logprobs, found.logprobs)
            else:
                given = given._replace(entropy=upstream.entropy[at].contiguous())
            head_backward(chunk, targets, found, given, dz, head, config)
            grads.add(ChunkGradient(row_index, chunk, dz, None, slope, own))
    return grads


def _in_units(upstream: Upstream, operand: torch.dtype, dtype: torch.dtype) -> tuple[Upstream, Tensor | None]:
    """Upstream gradients in `dtype`, as multiples of the unit that the operands' dtype asks for."""
    logprobs, entropy = upstream.logprobs.to(dtype), None if upstream.entropy is None else upstream.entropy.to(dtype)
    largest = logprobs.abs() if entropy is None else torch.maximum(logprobs.abs(), entropy.abs())
    unit = unit_of(operand, largest)
    if unit is None:
        return Upstream(logprobs, entropy), None
    return Upstream(logprobs / unit, None if entropy is None else entropy / unit), unit


def loss(operands: Operands, plan: LossPlan, wanted: Wanted) -> tuple[LossRows, Gradients]:
    operands = _common(operands)
    hidden, weight = operands[:2]
    head, slope, count = plan.head, plan.head.scale / plan.head.temperature, len(plan.weights)
    grads = _gradients(operands, plan, wanted, unit_of(hidden.dtype, plan.weights))
    columns = local_targets(plan.targets, head.shard, len(weight))
    config = config_for(hidden.device, hidden.dtype, head)
    size = chunk_rows(_width(weight, plan), hidden.dtype, plan.backend)
    buffer = _buffer(min(size, count), weight) if any(wanted) else None
    out = torch.empty(4, count, dtype=accumulator(hidden.dtype)[0], device=hidden.device)
    with _on(hidden.device):
        for at, row_index in _chunks(count, size, plan.rows):
            chunk, targets = _take(operands, columns, row_index)
            exps = None if buffer is None else buffer[: at.stop - at.start]
            target_logit = own_logits(head_target_logit(chunk, targets, head), targets, head.shard)
            partials = head_forward(chunk, targets, target_logit, exps, head, config)
            rows = _finalise(merged(partials, head.shard), target_logit, hidden.dtype, plan, at, grads.unit)
            out[:, at] = torch.stack((rows.loss, rows.logprobs, rows.entropy, rows.coefficient))
            if exps is not None:
                rescale(exps, partials, rows, targets, config)
                upstream = rows.coefficient * plan.weights[at]
                own = Rows(targets, upstream if grads.unit is None else upstream / grads.unit, rows.logprobs)
                grads.add(ChunkGradient(row_index, chunk, exps, rows.factor, slope, own))
    return LossRows((out[0] * plan.weights).sum(), *(x.clone() for x in out[1:])), grads


def _finalise(
    partials: Tensor, target_logit: Tensor, exps: torch.dtype, plan: LossPlan, at: slice, unit: Tensor | None
) -> RowTerms:
    """The rows of a chunk. Where no kernel has the formula, autograd runs between two launches."""
    arguments = loss_arguments(plan, at, unit)
    if arguments is not None:
        return finalise(partials, target_logit, exps, plan.head, arguments)
    logprobs = finalise(partials, target_logit, exps, plan.head).logprobs
    losses, coefficients = losses_and_coefficients(plan.objective, logprobs, part(plan.per_token, at))
    arguments = given_arguments(plan, at, unit, coefficients)
    return finalise(partials, target_logit, exps, plan.head, arguments)._replace(loss=losses)


def logits_loss(logits: Tensor, plan: LossPlan, grad: Tensor | None) -> tuple[LossRows, Tensor | None]:
    _refuse_without_device(logits)
    unit = unit_of(logits.dtype, plan.weights, plan.per_token["advantages"])
    with _on(logits.device):
        return kernels.logits_loss(logits, plan, grad, unit, (16, 64) if interpreter.ACTIVE else (1, 4096)), unit


def scale_(values: Tensor, scale: Tensor) -> None:
    with _on(values.device):
        kernels.scale_(values, scale)
