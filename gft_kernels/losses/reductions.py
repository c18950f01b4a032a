"""Reductions as a weight per token: loss = sum_t w_t * loss_t.

The weights are computed before the pass, from the mask and the sequences, so that micro-batches add
up. Give every micro-batch the counts of the whole optimiser step: together they then have the loss
and the gradient of one batch.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

Reduction = Literal["token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm", "sum"]


def token_weights(
    reduction: Reduction,
    loss_mask: Tensor,  # [N] bool
    sequence_ids: Tensor | None = None,  # [N]
    *,
    num_tokens: int | Tensor | None = None,
    num_sequences: int | Tensor | None = None,
    max_length: int | None = None,
) -> Tensor:  # [N] fp32
    """Weight of every token under a named reduction, 0 where masked.

    Equivalent to::

        token-mean               mask / num_tokens
        seq-mean-token-sum       mask / num_sequences
        seq-mean-token-mean      mask / (num_sequences * tokens of the row's sequence)
        seq-mean-token-sum-norm  mask / (num_sequences * max_length)
        sum                      mask

    Data-parallel wrappers that average gradients over R ranks divide once more. Multiply the result
    by R there.

    Args:
        reduction: one of the names above.
        loss_mask: [N] bool, True where a token is trained on (`targets != -100`).
        sequence_ids: [N] integers. seq-mean-token-mean needs them, and so do the other seq
            reductions without num_sequences. A sequence must lie whole in one micro-batch.
        num_tokens: trained tokens in the whole optimiser step, over all micro-batches and ranks.
            Default: those of this mask.
        num_sequences: sequences in the whole optimiser step. Default: the distinct sequence_ids of
            unmasked tokens here.
        max_length: L_max of seq-mean-token-sum-norm in tokens, a constant of the run.

    Returns:
        [N] fp32, not differentiable.

    Raises:
        ValueError: unknown reduction, a missing argument, shapes, a negative count.
        TypeError: a mask that is not bool [N].

    Cost: O(N); a sort of [N] where sequence_ids are used. Nothing waits for the device.
    """
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction = {reduction!r}: choose one of {', '.join(get_args(Reduction))}.")
    if loss_mask.dtype != torch.bool or loss_mask.ndim != 1:
        raise TypeError(
            f"loss_mask must be bool [N], got {loss_mask.dtype} {tuple(loss_mask.shape)}: pass targets != ignore_index."
        )
    mask = loss_mask.float()
    if reduction == "sum":
        return mask
    if reduction == "token-mean":
        return mask / _divisor("num_tokens", mask.sum() if num_tokens is None else num_tokens, mask)
    if sequence_ids is None and (num_sequences is None or reduction == "seq-mean-token-mean"):
        raise ValueError(f"reduction {reduction!r} needs sequence_ids [N].")
    if sequence_ids is not None and sequence_ids.shape != loss_mask.shape:
        raise ValueError(
            f"sequence_ids has shape {tuple(sequence_ids.shape)}; it must match loss_mask, {tuple(loss_mask.shape)}."
        )
    lengths = torch.ones_like(mask) if sequence_ids is None else _lengths(sequence_ids, loss_mask)
    if num_sequences is None:
        num_sequences = (mask.double() / lengths).sum().round()  # each of a sequence's n tokens counts 1 / n
    weights = mask / _divisor("num_sequences", num_sequences, mask)
    if reduction == "seq-mean-token-mean":
        weights = weights / lengths
    elif reduction == "seq-mean-token-sum-norm":
        if max_length is None or max_length < 1:
            raise ValueError(
                f"reduction {reduction!r} needs max_length >= 1 (a constant of the run), got {max_length}."
            )
        weights = weights / max_length
    return weights


def _divisor(name: str, count: int | Tensor, mask: Tensor) -> int | Tensor:
    """The count, at least 1, because a step may have no token.

    A number is never made a tensor: a compiled program would have a graph for every one.
    """
    if isinstance(count, Tensor):
        return count.to(mask.device).clamp(min=1).to(mask.dtype)
    if not count >= 0:
        raise ValueError(f"{name} = {count}: give the count over the whole optimiser step, 0 or more.")
    return max(count, 1)


def _lengths(sequence_ids: Tensor, loss_mask: Tensor) -> Tensor:
    """[N] unmasked tokens in each token's sequence, at least 1, found by sorting: nothing waits."""
    ids, order = sequence_ids.sort()
    before = torch.nn.functional.pad(loss_mask[order].cumsum(0), (1, 0))  # unmasked tokens among the first i
    sequence_ids = sequence_ids.contiguous()
    count = before[torch.searchsorted(ids, sequence_ids, right=True)] - before[torch.searchsorted(ids, sequence_ids)]
    return count.clamp(min=1).to(torch.float32)
