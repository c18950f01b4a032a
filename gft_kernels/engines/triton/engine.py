"""The Triton engine on the host: chunks of rows, kernels between library GEMMs.

    fused loss      reference, forward (stores exps), finalise, rescale, then dhidden and dweight GEMMs: 6KDV for K rows
    log-prob op     reference, forward (stores nothing), finalise: 2NDV; backward recomputes: 6KDV for K rows

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
from ...losses.objectives import losses_and_coefficients, part
from ..accumulate import ChunkGradient, Gradients, Index, Rows, Wanted, unit_of
from ..contract import LossPlan, LossRows, Plan, Scores, Upstream
from ..sparse import SparseGradients
from . import interpreter
from . import logits as kernels
from .advantages import group_advantages
from .arguments import given_arguments, loss_arguments
from .backward import head_backward
from .column_stats import look
from .configs import accumulator, config_for, pad
from .finalise import RowTerms, finalise
from .forward import head_forward, head_reference
from .rescale import rescale

__all__ = ["group_advantages", "logits_loss", "loss", "name", "recorded", "scale_", "score", "score_gradients"]

name = "triton"
recorded = False
CHUNK_BYTES = 3 << 28  # three chunks at 8192 rows of 131,072 columns in 16 bits: all but dweight stays under 1.1 GiB

if interpreter.ACTIVE:
    interpreter.repair()


def _refuse_without_device(tensor: Tensor) -> None:
    if tensor.device.type != "cuda" and not interpreter.ACTIVE:
        raise ValueError(
            f"backend = 'triton' needs CUDA or ROCm tensors, got {tensor.device}: use backend='chunked' there "
            "(TRITON_INTERPRET=1, set before the import, runs the kernels on a CPU, slowly)."
        )


def _common(operands: Operands) -> Operands:
    """The operands in one dtype (the wider; fp16 with bf16 is fp32), the weight with adjacent columns."""
    hidden, weight, bias = operands
    _refuse_without_device(hidden)
    dtype = torch.promote_types(hidden.dtype, weight.dtype)
    weight = weight.to(dtype)
    weight = weight if weight.stride(1) == 1 else weight.contiguous()
    return Operands(hidden.to(dtype), weight, None if bias is None else bias.contiguous())


def _on(device: torch.device) -> AbstractContextManager:
    """Triton launches on the current device: make it the tensors' own."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def chunk_rows(vocabulary: int, dtype: torch.dtype, backend: Backend) -> int:
    """Rows a chunk: as many exponentials as CHUNK_BYTES holds, in steps of 128 within 128 to 8192."""
    return backend.chunk_rows or min(max(CHUNK_BYTES // (pad(vocabulary) * dtype.itemsize) // 128 * 128, 128), 8192)


def _chunks(count: int, size: int, rows: Tensor | None) -> Iterator[tuple[slice, Index]]:
    """(place among the chosen rows, place among all rows) of each of the fewest chunks, evenly filled."""
    if count > size:
        even = triton.cdiv(count, triton.cdiv(count, size))
        size = min(size, triton.cdiv(even, 128) * 128)
    for start in range(0, count, size):
        at = slice(start, min(start + size, count))
        yield at, at if rows is None else rows[at]


def _gradients(operands: Operands, plan: Plan, wanted: Wanted, unit: Tensor | None) -> Gradients:
    """The sums of this call, exact or over the columns that count."""
    if plan.backend.sparsity is None:
        return Gradients(operands, wanted, unit)
    return SparseGradients(operands, wanted, unit, sparse=plan.backend.sparsity, look=look, probe=0)


def _buffer(rows: int, weight: Tensor) -> Tensor:  # [rows, V]
    """Of the weight's dtype, its rows aligned."""
    return torch.empty(rows, pad(len(weight)), dtype=weight.dtype, device=weight.device)[:, : len(weight)]


def score(operands: Operands, plan: Plan) -> Scores:
    hidden, weight, bias = _common(operands)
    head, count = plan.head, len(plan.targets if plan.rows is None else plan.rows)
    config = config_for(hidden.device, hidden.dtype, head)
    out = torch.empty(4, count, dtype=accumulator(hidden.dtype)[0], device=hidden.device)
    with _on(hidden.device):
        for at, index in _chunks(count, plan.backend.chunk_rows or 8192, plan.rows):
            chunk, targets = Operands(hidden[index].contiguous(), weight, bias), plan.targets[index].contiguous()
            reference = head_reference(chunk, targets, head)
            partials = head_forward(chunk, targets, reference, None, head, config)
            out[:, at] = torch.stack(finalise(partials, reference, hidden.dtype, head)[:4])
    return Scores(out[0].clone(), out[1].clone(), out[2:].clone())  # no views of one tensor: custom ops may not alias


def score_gradients(operands: Operands, plan: Plan, scores: Scores, upstream: Upstream, wanted: Wanted) -> Gradients:
    """Recompute the chosen rows' tiles and add up the gradients of an upstream gradient on log p and entropy."""
    hidden, weight, bias = _common(operands)
    upstream = Upstream(*(None if g is None else g.to(scores.logprobs.dtype) for g in upstream))  # type: ignore[arg-type]
    largest = upstream.logprobs.abs()
    if upstream.entropy is not None:
        largest = torch.maximum(largest, upstream.entropy.abs())
    unit = unit_of(hidden.dtype, largest)
    grads = _gradients(operands, plan, wanted, unit)
    if unit is not None:
        upstream = Upstream(*(None if g is None else g / unit for g in upstream))  # type: ignore[arg-type]
    head, slope, count = plan.head, plan.head.scale / plan.head.temperature, len(upstream.logprobs)
    config = config_for(hidden.device, hidden.dtype, head, entropy=upstream.entropy is not None)
    size = chunk_rows(len(weight), hidden.dtype, plan.backend)
    buffer = _buffer(min(size, count), weight)
    with _on(hidden.device):
        for at, index in _chunks(count, size, plan.rows):
            chunk, targets = Operands(hidden[index].contiguous(), weight, bias), plan.targets[index].contiguous()
            dz, own = buffer[: at.stop - at.start], None
            found = Scores(scores.logprobs[at], scores.entropy[at], scores.normaliser[:, at].contiguous())
            given = Upstream(upstream.logprobs[at].contiguous(), None)
            if upstream.entropy is None:
                own = Rows(targets, given.logprobs, found.logprobs)
            else:
                given = given._replace(entropy=upstream.entropy[at].contiguous())
            head_backward(chunk, targets, found, given, dz, head, config)
            grads.add(ChunkGradient(index, chunk.hidden, dz, None, slope, own), weight)
    return grads


def loss(operands: Operands, plan: LossPlan, wanted: Wanted) -> tuple[LossRows, Gradients]:
    hidden, weight, bias = _common(operands)
    head, slope, count = plan.head, plan.head.scale / plan.head.temperature, len(plan.weights)
    grads = _gradients(operands, plan, wanted, unit_of(hidden.dtype, plan.weights))
    config, size = config_for(hidden.device, hidden.dtype, head), chunk_rows(len(weight), hidden.dtype, plan.backend)
    buffer = _buffer(min(size, count), weight) if any(wanted) else None
    out = torch.empty(4, count, dtype=accumulator(hidden.dtype)[0], device=hidden.device)
    with _on(hidden.device):
        for at, index in _chunks(count, size, plan.rows):
            chunk, targets = Operands(hidden[index].contiguous(), weight, bias), plan.targets[index].contiguous()
            exps = None if buffer is None else buffer[: at.stop - at.start]
            reference = head_reference(chunk, targets, head)
            partials = head_forward(chunk, targets, reference, exps, head, config)
            rows = _finalise(partials, reference, hidden.dtype, plan, at, grads.unit)
            out[:, at] = torch.stack((rows.loss, rows.logprobs, rows.entropy, rows.coefficient))
            if exps is not None:
                rescale(exps, partials, rows, targets, config)
                upstream = rows.coefficient * plan.weights[at]
                own = Rows(targets, upstream if grads.unit is None else upstream / grads.unit, rows.logprobs)
                grads.add(ChunkGradient(index, chunk.hidden, exps, rows.factor, slope, own), weight)
    return LossRows((out[0] * plan.weights).sum(), *(x.clone() for x in out[1:])), grads


def _finalise(
    partials: Tensor, reference: Tensor, exps: torch.dtype, plan: LossPlan, at: slice, unit: Tensor | None
) -> RowTerms:
    """The rows of a chunk. Coefficients that no kernel knows are taken by autograd between two launches."""
    arguments = loss_arguments(plan, at, unit)
    if arguments is not None:
        return finalise(partials, reference, exps, plan.head, arguments)
    logprobs = finalise(partials, reference, exps, plan.head).logprobs
    losses, coefficients = losses_and_coefficients(plan.objective, logprobs, part(plan.per_token, at))
    arguments = given_arguments(plan, at, unit, coefficients)
    return finalise(partials, reference, exps, plan.head, arguments)._replace(loss=losses)


def logits_loss(logits: Tensor, plan: LossPlan, grad: Tensor | None) -> tuple[LossRows, Tensor | None]:
    _refuse_without_device(logits)
    unit = unit_of(logits.dtype, plan.weights, plan.per_token["advantages"])
    with _on(logits.device):
        return kernels.logits_loss(logits, plan, grad, unit, (16, 64) if interpreter.ACTIVE else (1, 4096)), unit


def scale_(values: Tensor, scale: Tensor) -> None:
    with _on(values.device):
        kernels.scale_(values, scale)
