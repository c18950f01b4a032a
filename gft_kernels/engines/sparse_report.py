"""What column-sparse gradients left out, over all chunks of a call: the numbers a caller sees in `stats`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .accumulate import Rows
from .columns import tiny

NAMES = ("sparse_columns", "sparse_exact", "sparse_dropped_max", "sparse_dropped_mean", "sparse_error")


class ChunkReport(NamedTuple):
    """Scalars of one chunk, on the device. u is the upstream gradient of a row's log p."""

    rows: Tensor
    columns: Tensor  # share kept, times rows
    exact: Tensor  # rows that were added whole
    upstream: Tensor  # sum of |u|
    dropped: Tensor  # sum of the mass left out
    upstream_max: Tensor
    dropped_max: Tensor
    error: Tensor  # bound of |dz' - dz|
    norm: Tensor  # of dz at the targets, at most |dz|


def chunk_report(
    rows: Rows,
    own: Tensor,  # [K] |dz| at the targets
    share: float = 1.0,  # of the columns
    dropped: Tensor | None = None,  # [K], None: added whole
    error: Tensor | None = None,
) -> ChunkReport:
    zero, weights, count = own.new_zeros(()), rows.upstream.abs(), len(own)
    top = own.amax()
    return ChunkReport(
        rows=zero + count,
        columns=zero + share * count,
        exact=zero + (count if dropped is None else 0),
        upstream=weights.sum(),
        dropped=zero if dropped is None else dropped.sum(),
        upstream_max=weights.amax(),
        dropped_max=zero if dropped is None else dropped.amax(),
        error=zero if error is None else error,
        norm=torch.linalg.vector_norm(own / top.clamp(min=tiny(own))) * top,
    )


def combined(chunks: list[ChunkReport]) -> Tensor:
    """The numbers of NAMES over all chunks.

    Shares are of rows; what was dropped is relative to |u|; the error is relative to the norm. Both
    norms are taken over the largest one first, so that no square underflows.
    """
    every = ChunkReport(*(torch.stack(numbers) for numbers in zip(*chunks, strict=True)))
    least, rows = tiny(every.norm), every.rows.sum()
    unit = every.norm.amax().clamp(min=least)
    error, norm = (torch.linalg.vector_norm(x / unit) for x in (every.error, every.norm))
    return torch.stack(
        (
            every.columns.sum() / rows,
            every.exact.sum() / rows,
            every.dropped_max.amax() / every.upstream_max.amax().clamp(min=least),
            every.dropped.sum() / every.upstream.sum().clamp(min=least),
            error / norm.clamp(min=least),
        )
    )


def named(report: Tensor | None) -> dict[str, Tensor]:
    """The numbers by name, detached scalars; empty where nothing can be left out."""
    return {} if report is None or not len(report) else dict(zip(NAMES, report.unbind(), strict=True))
