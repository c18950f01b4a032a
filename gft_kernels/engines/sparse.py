"""Column-sparse gradients: GEMMs over the columns that carry them, and a tail for the rest.

columns.py says what is kept. In kept rows, what is dropped of dz is replaced by a product of two
vectors,

    tail       M_ij ~ r_i q_j / R elsewhere in kept rows
               r_i = sum_dropped M_ij    q_j = sum_i M_ij    R = sum_dropped q_j
    bound^2    that of columns.py, and (|r| |q| / R)^2 for the tail   >=   |dz' - dz|^2

The tail keeps the row and column sums of dz. It is one more row of both gradient GEMMs a chunk. The
tails of all chunks are added at the end.

Cost: 4fKDV for the share f of columns kept, and 4VD a chunk for the tail. Memory: the kept columns,
and V numbers a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..head import Operands, Sparse
from .accumulate import ChunkGradient, Gradients, Index, Products, Rows, Wanted, add_matmul, matmul
from .columns import Kept, Look, choose, target_entries
from .sparse_report import NAMES, ChunkReport, chunk_report, combined

TAILS = 64  # chunks whose tails are held before they are added


@dataclass
class _Tail:
    """dz ~ rows [m] x columns [V] at the rows `row_index` of dhidden."""

    row_index: Index
    rows: Tensor  # [m] times the logits' slope
    columns: Tensor  # [V], the largest 1
    hidden: Tensor  # [D] rows @ hidden


class SparseGradients(Gradients):
    """`Gradients` over the kept columns of each chunk, where that pays, with a report.

    Args:
        look: the engine's own, which must fit the sign of its chunks (`columns.Look`).
        probe: rows that are looked at first, to tell whether the chunk is too flat. 0 for a look
            that costs the same for a few rows as for all.
    """

    def __init__(
        self,
        operands: Operands,
        wanted: Wanted,
        unit: Tensor | None = None,
        *,
        sparse: Sparse,
        look: Look,
        probe: int = 16,
    ) -> None:
        super().__init__(operands, wanted, unit)
        self.sparse, self.look, self.probe = sparse, look, probe
        self.operand = operands.weight  # that of the last chunk added
        self.tails: list[_Tail] = []
        self.reports: list[ChunkReport] = []
        # Chunks that are not looked at after one that did not pay: in all, and still to come.
        self.pause = self.waiting = 0

    def add(self, chunk: ChunkGradient) -> Products:
        """As `Gradients.add`. The products are returned only where the chunk was added whole."""
        self.operand = chunk.operands.weight
        rows = chunk.rows
        if rows is None or not any(self.wanted):  # an entropy's gradient has either sign in a row
            return super().add(chunk)
        own = target_entries(chunk, rows)
        kept = self._choose(chunk, rows, own)
        if kept is None:
            self.reports.append(chunk_report(rows, own))
            return super().add(chunk)
        dropped, error = self._add_kept(chunk, rows, kept)
        self.reports.append(chunk_report(rows, own, len(kept.columns) / len(self.operand), dropped, error))
        if len(self.tails) == TAILS:
            self._add_tails()
        return Products(None, None)

    def _choose(self, chunk: ChunkGradient, rows: Rows, own: Tensor) -> Kept | None:
        """What to keep of a chunk, or None where it does not pay.

        After a chunk that did not pay, the next ones are not looked at: 1, then 3, 7, up to 63
        chunks.
        """
        if self.waiting:
            self.waiting -= 1
            return None
        few, flat = self.probe, False
        if 0 < few < len(own):
            factor = None if chunk.factor is None else chunk.factor[:few]
            first = chunk._replace(grad=chunk.grad[:few], factor=factor)
            flat = choose(first, Rows(*(x[:few] for x in rows)), own[:few], self.sparse, self.look) is None
        kept = None if flat else choose(chunk, rows, own, self.sparse, self.look)
        self.pause = 0 if kept is not None else min(2 * self.pause + 1, 63)
        self.waiting = self.pause
        return kept

    def _add_kept(self, chunk: ChunkGradient, rows: Rows, kept: Kept) -> tuple[Tensor, Tensor]:
        """Add the kept columns and remember the tail. Returns (mass dropped [K], error bound)."""
        row_index, (hidden, weight, *_), grad, factor, slope, _ = chunk
        picked = grad.index_select(1, kept.columns)
        sums = picked.to(self.dtype).sum(1)
        dropped = -sums if kept.row_sums is None else kept.row_sums - sums
        # What is left of a row has the sign opposite to its upstream gradient, and a rounding must
        # not turn it.
        left = dropped if factor is None else dropped * factor
        left = torch.where(left * -rows.upstream.sign() > 0, left, 0)
        if len(kept.rows) < len(grad):
            picked, hidden, left = picked[kept.rows], hidden[kept.rows], left[kept.rows]
            factor = None if factor is None else factor[kept.rows]
            row_index = kept.rows + row_index.start if isinstance(row_index, slice) else row_index[kept.rows]
        scale = torch.full_like(left, slope) if factor is None else factor * slope
        if self.hidden is not None:
            self.hidden[row_index] = matmul(picked, weight[kept.columns]) * scale[:, None]
        if self.wanted[1]:
            self.weight = self._zeros(weight.shape) if self.weight is None else self.weight
            right = torch.empty_like(hidden, memory_format=torch.contiguous_format)
            torch.mul(hidden, scale[:, None], out=right)
            self.weight.index_add_(0, kept.columns, matmul(picked.T, right))
        if self.wanted[2]:
            self.bias = self._zeros((len(weight), 2)) if self.bias is None else self.bias
            self.bias[:, 0].index_add_(0, kept.columns, picked.to(self.dtype).T @ scale.to(self.dtype))
        squared = kept.squared + self._tail(row_index, left, hidden, slope, kept)
        mass = (kept.sizes * kept.top).index_copy(0, kept.rows, left.abs())
        return mass, squared.sqrt() * kept.top

    def _tail(self, row_index: Index, left: Tensor, hidden: Tensor, slope: float, kept: Kept) -> Tensor:
        """Remember the chunk's tail. Returns its part of the squared error's bound."""
        total = kept.dropped.sum()
        if not self.sparse.tail:
            return torch.zeros_like(total)
        squared = (left / kept.top).square().sum() * (kept.dropped / total).square().sum()
        use = (total > 0) & (kept.squared + squared <= kept.allowed)
        top = kept.dropped.amax()
        rows = torch.where(use, left * (slope * top / total), 0)
        columns = torch.where(use, kept.dropped / top, 0)
        self.tails.append(_Tail(row_index, rows, columns, rows @ hidden.to(self.dtype)))
        return torch.where(use, squared, 0)

    def _add_tails(self) -> None:
        """Add the remembered tails: one row of each gradient GEMM for every chunk."""
        if not self.tails:
            return
        columns = torch.stack([tail.columns for tail in self.tails]).to(self.operand.dtype)
        if self.hidden is not None:
            for tail, vector in zip(self.tails, matmul(columns, self.operand), strict=True):
                self.hidden[tail.row_index] += tail.rows[:, None] * vector
        if self.weight is not None:
            hidden = torch.stack([tail.hidden for tail in self.tails]).to(self.operand.dtype)
            self.weight = add_matmul(self.weight, columns.T, hidden)
        if self.bias is not None:
            self.bias[:, 0] += columns.to(self.dtype).T @ torch.stack([tail.rows.sum() for tail in self.tails])
        self.tails = []

    def _zeros(self, shape: tuple[int, ...] | torch.Size) -> Tensor:
        return torch.zeros(shape, dtype=self.dtype, device=self.operand.device)

    def sums(self, operands: Operands) -> Iterator[Tensor | None]:
        self._add_tails()
        return super().sums(operands)

    def report(self) -> Tensor:
        """The numbers of sparse_report.NAMES over every row added so far."""
        return combined(self.reports) if self.reports else self._zeros((len(NAMES),))
