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

from ...head import Head
from ...losses.objectives import losses_and_coefficients
from ..accumulate import Gradients, Index, Rows, unit_of
from ..contract import Engine, LossPlan, PlanResult, Scores, Wanted
from ..sparse import gradients
from . import interpreter
from . import logits as kernels
from .arguments import given_arguments, loss_arguments
from .backward import head_backward
from .column_stats import look
from .configs import accumulator, config_for, pad
from .finalise import Rows as Finalised
from .finalise import finalise
from .forward import head_forward, head_reference
from .rescale import rescale

CHUNK_BYTES = 3 << 28  # three chunks at 8192 rows of 131,072 columns in 16 bits: all but dweight stays under 1.1 GiB


def _refuse_without_device(tensor: Tensor) -> None:
    if tensor.device.type != "cuda" and not interpreter.ACTIVE:
        raise ValueError(
            f"backend = 'triton' needs CUDA or ROCm tensors, got {tensor.device}: use backend='chunked' there "
            "(TRITON_INTERPRET=1, set before the import, runs the kernels on a CPU, slowly)."
        )


def _operands(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """The GEMMs' operands in one dtype (the wider; fp16 with bf16 is fp32), the weight with
    adjacent columns.
    """
    _refuse_without_device(hidden)
    dtype = torch.promote_types(hidden.dtype, weight.dtype)
    weight = weight.to(dtype)
    return (
        hidden.to(dtype),
        weight if weight.stride(1) == 1 else weight.contiguous(),
        None if bias is None else bias.contiguous(),
    )


def _on(device: torch.device) -> AbstractContextManager:
    """Triton launches on the current device: make it the tensors' own."""
    if interpreter.ACTIVE:
        # Before the first launch, and not at import: a program that only imports the package finds
        # Triton as it is, and none gets the wrong bf16 results of an interpreter as shipped.
        interpreter.repair()
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def chunk_rows(vocabulary: int, dtype: torch.dtype, head: Head) -> int:
    """Rows a chunk: as many exponentials as CHUNK_BYTES holds, in steps of 128 within 128 to 8192."""
    return head.chunk_rows or min(max(CHUNK_BYTES // (pad(vocabulary) * dtype.itemsize) // 128 * 128, 128), 8192)


def _chunks(count: int, size: int, rows: Tensor | None) -> Iterator[tuple[slice, Index]]:
    """(position among the chosen rows, index into [N]) of each of the fewest chunks, evenly filled."""
    if count > size:
        even = triton.cdiv(count, triton.cdiv(count, size))
        size = min(size, triton.cdiv(even, 128) * 128)
    for start in range(0, count, size):
        at = slice(start, min(start + size, count))
        yield at, at if rows is None else rows[at]


def score(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, head: Head, rows: Tensor | None
) -> Scores:
    hidden, weight, bias = _operands(hidden, weight, bias)
    config, count = config_for(hidden.device, hidden.dtype, head), len(targets) if rows is None else len(rows)
    out = torch.empty(4, count, dtype=accumulator(hidden.dtype)[0], device=hidden.device)
    with _on(hidden.device):
        for at, index in _chunks(count, head.chunk_rows or 8192, rows):
            chunk, chosen = hidden[index].contiguous(), targets[index].contiguous()
            reference = head_reference(chunk, weight, bias, chosen, head)
            partials = head_forward(chunk, weight, bias, chosen, reference, None, head, config)
            out[:, at] = torch.stack(finalise(partials, reference, chunk.dtype, head)[:4])
    return Scores(out[0].clone(), out[1].clone(), out[2:].clone())  # no views of one tensor: custom ops may not alias


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
    """Recompute the chosen rows' tiles and accumulate the gradients of an upstream [K] on log p and
    entropy.
    """
    grad_logprobs, grad_entropy = (None if g is None else g.to(scores.logprobs.dtype) for g in upstream)
    assert grad_logprobs is not None
    largest = grad_logprobs.abs() if grad_entropy is None else torch.maximum(grad_logprobs.abs(), grad_entropy.abs())
    operands = _operands(hidden, weight, bias)
    out = gradients(hidden, weight, bias, wanted, head, unit_of(operands[0].dtype, largest), look)
    hidden, weight, bias = operands
    if out.unit is not None:
        grad_logprobs, grad_entropy = (
            grad_logprobs / out.unit,
            None if grad_entropy is None else grad_entropy / out.unit,
        )
    config, count = config_for(hidden.device, hidden.dtype, head, grad_entropy is not None), len(grad_logprobs)
    size = chunk_rows(len(weight), hidden.dtype, head)
    buffer = _buffer(min(size, count), weight)
    with _on(hidden.device):
        for at, index in _chunks(count, size, rows):
            chunk, chosen, dz = hidden[index].contiguous(), targets[index].contiguous(), buffer[: at.stop - at.start]
            part = Scores(scores.logprobs[at], scores.entropy[at], scores.normaliser[:, at].contiguous())
            given = (grad_logprobs[at].contiguous(), None if grad_entropy is None else grad_entropy[at].contiguous())
            head_backward(chunk, weight, bias, chosen, part, given, dz, head, config)
            own = None if grad_entropy is not None else Rows(chosen, given[0], part.logprobs)
            out.add(index, dz, chunk, weight, head.scale / head.temperature, None, own)
    return out


def _buffer(rows: int, weight: Tensor) -> Tensor:
    """[rows, V] of the weight's dtype, its rows aligned."""
    return torch.empty(rows, pad(len(weight)), dtype=weight.dtype, device=weight.device)[:, : len(weight)]


def loss(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, plan: LossPlan, wanted: Wanted
) -> tuple[PlanResult, Gradients]:
    """Loss and per-row results over the plan's rows, with the gradients for an upstream gradient of
    1.
    """
    head, operands = plan.head, _operands(hidden, weight, bias)
    grads = gradients(hidden, weight, bias, wanted, head, unit_of(operands[0].dtype, plan.weights), look)
    hidden, weight, bias = operands
    config, count = config_for(hidden.device, hidden.dtype, head), len(plan.weights)
    size = chunk_rows(len(weight), hidden.dtype, head)
    buffer = _buffer(min(size, count), weight) if any(wanted) else None
    out = torch.empty(4, count, dtype=accumulator(hidden.dtype)[0], device=hidden.device)
    with _on(hidden.device):
        for at, index in _chunks(count, size, plan.rows):
            chunk, targets = hidden[index].contiguous(), plan.targets[index].contiguous()
            exps = None if buffer is None else buffer[: at.stop - at.start]
            reference = head_reference(chunk, weight, bias, targets, head)
            partials = head_forward(chunk, weight, bias, targets, reference, exps, head, config)
            rows = _finalise(partials, reference, chunk.dtype, plan, at, grads.unit)
            out[:, at] = torch.stack((rows.loss, rows.logprobs, rows.entropy, rows.coefficient))
            if exps is not None:
                rescale(exps, partials, rows, targets, config)
                upstream = rows.coefficient * plan.weights[at]
                own = Rows(targets, upstream if grads.unit is None else upstream / grads.unit, rows.logprobs)
                grads.add(index, exps, chunk, weight, head.scale / head.temperature, rows.factor, own)
    return PlanResult((out[0] * plan.weights).sum(), *(x.clone() for x in out[1:])), grads


def _finalise(
    partials: Tensor, reference: Tensor, exps: torch.dtype, plan: LossPlan, at: slice, unit: Tensor | None
) -> Finalised:
    """The rows of a chunk; an objective that no kernel knows takes its coefficients by autograd
    between two launches.
    """
    arguments = loss_arguments(plan, at, unit)
    if arguments is not None:
        return finalise(partials, reference, exps, plan.head, arguments)
    logprobs = finalise(partials, reference, exps, plan.head).logprobs
    per_token = {name: None if x is None else x[at] for name, x in plan.per_token.items()}
    losses, coefficients = losses_and_coefficients(plan.objective, logprobs, per_token)
    return finalise(partials, reference, exps, plan.head, given_arguments(plan, at, unit, coefficients))._replace(
        loss=losses
    )


def logits_loss(logits: Tensor, plan: LossPlan, grad: Tensor | None) -> tuple[PlanResult, Tensor | None]:
    """The loss on logits [N, V], its gradient in multiples of the returned unit into `grad`."""
    _refuse_without_device(logits)
    unit = unit_of(logits.dtype, plan.weights, plan.per_token["advantages"])
    with _on(logits.device):
        return kernels.logits_loss(logits, plan, grad, unit, (16, 64) if interpreter.ACTIVE else (1, 4096)), unit


def scale_(values: Tensor, scale: Tensor) -> None:
    with _on(values.device):
        kernels.scale_(values, scale)


ENGINE = Engine("triton", score, score_gradients, loss, logits_loss, scale_)
