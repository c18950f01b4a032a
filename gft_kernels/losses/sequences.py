"""Sums over sequences: every row of the result holds that of its own sequence."""

from __future__ import annotations

import torch
from torch import Tensor


def sequence_sums(
    values: Tensor,  # [N]
    sequence_ids: Tensor,  # [N]
) -> Tensor:  # [N] fp64
    """The sum of the values of each row's sequence, differentiable. Equal ids are one sequence.

    Nothing waits for the device. The bits are the same in every run: fp64 is accumulated serially
    on a CPU, and after a sort on a GPU.
    """
    ids = sequence_ids.contiguous()
    first = torch.searchsorted(ids.sort().values, ids)  # a place in 0..N-1 for each sequence
    wide = values.double()
    return torch.zeros_like(wide).index_put((first,), wide, accumulate=True)[first]


def sequence_means(
    values: Tensor,  # [N]
    sequence_ids: Tensor,  # [N]
) -> Tensor:  # [N]
    """The mean of the values of each row's sequence, in their dtype."""
    counts = sequence_sums(torch.ones_like(values), sequence_ids)
    return (sequence_sums(values, sequence_ids) / counts).to(values.dtype)
