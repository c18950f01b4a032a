"""Column-sparse gradients: the GEMMs see the columns that carry the gradient, a rank-one tail
stands for the others, a bound is kept.

For a chunk of rows with upstream gradients u_i of log p, dz_ij = u_i (1[j = y_i] - p_ij). With M_ij
= |dz_ij| off the target, size_i = |u_i| (1 - p_iy) = sum_j M_ij, which no entry of the row exceeds,
and g = max_i size_i:

    kept rows     size_i > eps g
    kept columns  M_ij > eps g in some kept row, and the targets of kept rows
    tail          M_ij ~ r_i q_j / R elsewhere in kept rows,
                  r_i = sum_dropped M_ij, q_j = sum_i M_ij, R = sum_dropped q_j
    bound^2       sum_dropped (max_i M_ij) q_j + (|r| |q| / R)^2 + 2 sum_(rows not kept) size_i^2   >=   |dz' - dz|^2

The tail keeps the row and column sums of dz. It is one more row of both gradient GEMMs a chunk:
formed at the end, over all chunks. A soft cap makes entries smaller than these sizes, so the bound
still holds. docs/column-sparse.md derives it.

Cost: one look at dz, 4fKDV for the share f of columns kept, 4VD a chunk for the tail. Memory: the
kept columns; V numbers a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..head import Head, Sparse
from .accumulate import Gradients, Index, Rows, add_matmul, matmul
from .contract import SPARSITY

TAILS = 64  # chunks whose tails are held before they are added
SHARE_FOR_ROWS, FOR_COLUMNS = (
    0.1,
    0.8,
)  # of the squared error: for rows left out, for them and the columns; the rest is for the tail


class Looked(NamedTuple):
    """One look at scale_i |grad_ij| of a chunk; the targets' entries may be in it or not."""

    largest: Tensor  # [V] over rows
    total: Tensor  # [V] over rows
    row_sums: Tensor | None  # [K] of grad itself; None: they are 0


Look = Callable[[Tensor, Tensor], Looked]


def look(grad: Tensor, scale: Tensor) -> Looked:
    """`Looked` of grad [K, V] that is nowhere negative but at the targets; 16 rows at a time, so
    that the products stay in cache.
    """
    largest, buffer = grad.new_zeros(grad.shape[1]), torch.empty_like(grad[:16])
    for part, factor in zip(grad.split(16), scale.split(16), strict=True):
        torch.maximum(largest, torch.mul(part, factor[:, None], out=buffer[: len(part)]).amax(0), out=largest)
    return Looked(largest, scale @ grad, None)


def look_capped(grad: Tensor, scale: Tensor) -> Looked:
    """The same where a soft cap's slope is in grad, and its rows do not add up to 0."""
    return look(grad, scale)._replace(row_sums=grad.sum(1))


class Kept(NamedTuple):
    """What is kept of a chunk, and what is known of the rest; all but `top` in multiples of it, so
    that no square underflows.
    """

    columns: Tensor  # [n]
    rows: Tensor  # [m] ascending
    dropped: Tensor  # [V] sums over rows of the dropped |dz|, 0 at kept columns
    row_sums: Tensor | None  # [K] of grad
    squared: Tensor  # bound of the squared error, tail apart
    allowed: Tensor  # of the squared error, tail included
    sizes: Tensor  # [K]
    top: Tensor  # the largest size


@dataclass
class _Tail:
    """dz ~ rows [m] x columns [V] at the rows `index` of dhidden."""

    index: Index
    rows: Tensor  # [m] times the logits' slope
    columns: Tensor  # [V], the largest 1
    hidden: Tensor  # [D] rows @ hidden


class SparseGradients(Gradients):
    """`Gradients` that adds a chunk over its kept columns where that pays, with a report of what
    was left out.
    """

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        wanted: tuple[bool, bool, bool],
        unit: Tensor | None = None,
        *,
        sparse: Sparse,
        look: Look = look,
        probe: int = 16,
    ) -> None:
        super().__init__(hidden, weight, bias, wanted, unit)
        self.sparse, self.look, self.probe = sparse, look, probe
        self.operand = weight  # what the GEMMs multiply with: the last chunk's
        self.tails: list[_Tail] = []
        self.numbers: list[Tensor] = []  # a row of `report`'s table for every chunk
        self.pause = self.waiting = 0

    def add(
        self,
        index: Index,
        grad: Tensor,
        hidden: Tensor,
        weight: Tensor,
        slope: float,
        factor: Tensor | None,
        rows: Rows | None = None,
    ) -> Tensor | None:
        """As `Gradients.add`; the product is returned only where the chunk was added whole."""
        self.operand = weight
        if rows is None or not any(self.wanted):  # an entropy's gradient has either sign in a row
            return super().add(index, grad, hidden, weight, slope, factor)
        own = _own(grad, factor, rows)
        kept = self._choose(grad, factor, rows, own)
        if kept is None:
            self._note(rows, own, 1.0, None, None)
            return super().add(index, grad, hidden, weight, slope, factor)
        self._add_kept(index, grad, hidden, weight, slope, factor, rows, own, kept)
        if len(self.tails) == TAILS:
            self._add_tails()
        return None

    def _choose(self, grad: Tensor, factor: Tensor | None, rows: Rows, own: Tensor) -> Kept | None:
        """What to keep of a chunk.

        Where it does not pay, None, and the next chunks are not looked at, ever more of them.
        """
        if self.waiting:
            self.waiting -= 1
            return None
        few = self.probe
        flat = False
        if 0 < few < len(grad):  # a few rows tell
            first = Rows(*(x[:few] for x in rows))
            flat = (
                choose(grad[:few], None if factor is None else factor[:few], first, own[:few], self.sparse, self.look)
                is None
            )
        kept = None if flat else choose(grad, factor, rows, own, self.sparse, self.look)
        self.pause = 0 if kept is not None else min(2 * self.pause + 1, 63)
        self.waiting = self.pause
        return kept

    def _add_kept(
        self,
        index: Index,
        grad: Tensor,
        hidden: Tensor,
        weight: Tensor,
        slope: float,
        factor: Tensor | None,
        rows: Rows,
        own: Tensor,
        kept: Kept,
    ) -> None:
        picked = grad.index_select(1, kept.columns)
        sums = picked.to(self.dtype).sum(1)
        dropped = -sums if kept.row_sums is None else kept.row_sums - sums
        # What is left of a row has the sign opposite to its upstream gradient; a rounding must not
        # turn it.
        sign = -rows.upstream.sign()
        left = dropped if factor is None else dropped * factor
        left = torch.where(left * sign > 0, left, 0)
        if len(kept.rows) < len(grad):
            picked, hidden, left = picked[kept.rows], hidden[kept.rows], left[kept.rows]
            factor = None if factor is None else factor[kept.rows]
            index = kept.rows + index.start if isinstance(index, slice) else index[kept.rows]
        scale = torch.full_like(left, slope) if factor is None else factor * slope
        if self.hidden is not None:
            self.hidden[index] = matmul(picked, weight[kept.columns]) * scale[:, None]
        if self.wanted[1]:
            self.weight = self._zeros(weight.shape) if self.weight is None else self.weight
            right = torch.mul(
                hidden, scale[:, None], out=torch.empty_like(hidden, memory_format=torch.contiguous_format)
            )
            self.weight.index_add_(0, kept.columns, matmul(picked.T, right))
        if self.wanted[2]:
            self.bias = self._zeros((len(weight), 2)) if self.bias is None else self.bias
            self.bias[:, 0].index_add_(0, kept.columns, picked.to(self.dtype).T @ scale.to(self.dtype))
        squared = kept.squared + self._tail(index, left, hidden, slope, kept)
        mass = (kept.sizes * kept.top).index_copy(0, kept.rows, left.abs())
        self._note(rows, own, len(kept.columns) / len(weight), mass, squared.sqrt() * kept.top)

    def _tail(self, index: Index, left: Tensor, hidden: Tensor, slope: float, kept: Kept) -> Tensor:
        """Remember the chunk's tail; its part of the squared error's bound."""
        total = kept.dropped.sum()
        if not self.sparse.tail:
            return torch.zeros_like(total)
        squared = (left / kept.top).square().sum() * (kept.dropped / total).square().sum()
        use = (total > 0) & (kept.squared + squared <= kept.allowed)
        top = kept.dropped.amax()
        rows = torch.where(use, left * (slope * top / total), 0)
        columns = torch.where(use, kept.dropped / top, 0)
        self.tails.append(_Tail(index, rows, columns, rows @ hidden.to(self.dtype)))
        return torch.where(use, squared, 0)

    def _add_tails(self) -> None:
        """Add the remembered tails: a row of each gradient GEMM for every chunk."""
        if not self.tails:
            return
        columns = torch.stack([tail.columns for tail in self.tails]).to(self.operand.dtype)
        if self.hidden is not None:
            for tail, vector in zip(self.tails, matmul(columns, self.operand), strict=True):
                self.hidden[tail.index] += tail.rows[:, None] * vector
        if self.weight is not None:
            self.weight = add_matmul(
                self.weight, columns.T, torch.stack([tail.hidden for tail in self.tails]).to(self.operand.dtype)
            )
        if self.bias is not None:
            self.bias[:, 0] += columns.to(self.dtype).T @ torch.stack([tail.rows.sum() for tail in self.tails])
        self.tails = []

    def _zeros(self, shape: tuple[int, ...] | torch.Size) -> Tensor:
        return torch.zeros(shape, dtype=self.dtype, device=self.operand.device)

    def sums(self, inputs: tuple[Tensor, Tensor, Tensor | None]) -> Iterator[Tensor | None]:
        self._add_tails()
        return super().sums(inputs)

    def _note(self, rows: Rows, own: Tensor, share: float, mass: Tensor | None, error: Tensor | None) -> None:
        """A row of the report's table: rows, columns kept, exact; |u| largest and summed, mass
        dropped likewise; error and norm.
        """
        zero, weights = own.new_zeros(()), rows.upstream.abs()
        counts = (zero + x for x in (len(own), share * len(own), float(mass is None) * len(own)))
        left = (zero, zero) if mass is None else (mass.amax(), mass.sum())
        norms = (
            zero if error is None else error,
            torch.linalg.vector_norm(own / own.amax().clamp(min=_tiny(own))) * own.amax(),
        )
        self.numbers.append(torch.stack((*counts, weights.amax(), weights.sum(), *left, *norms)))

    def report(self) -> Tensor:
        """The numbers of plan.SPARSITY, over every row added so far."""
        if not self.numbers:
            return self._zeros((len(SPARSITY),))
        table = torch.stack(self.numbers)
        rows, columns, exact, _, weight, _, mass, _, _ = table.sum(0)
        _, _, _, weight_top, _, mass_top, _, _, unit = table.amax(0)
        dropped = (mass_top / weight_top.clamp(min=_tiny(table)), mass / weight.clamp(min=_tiny(table)))
        error, norm = torch.linalg.vector_norm(table[:, -2:] / unit.clamp(min=_tiny(table)), dim=0)
        return torch.stack((columns / rows, exact / rows, *dropped, error / norm.clamp(min=_tiny(table))))


def gradients(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    wanted: tuple[bool, bool, bool],
    head: Head,
    unit: Tensor | None = None,
    look_once: Look | None = None,
) -> Gradients:
    """The accumulators that a head asks for; `look_once` is an engine's own look, for which a few
    rows cost as much as all.
    """
    if head.sparsity is None:
        return Gradients(hidden, weight, bias, wanted, unit)
    if look_once is not None:
        return SparseGradients(hidden, weight, bias, wanted, unit, sparse=head.sparsity, look=look_once, probe=0)
    return SparseGradients(
        hidden, weight, bias, wanted, unit, sparse=head.sparsity, look=look if head.softcap is None else look_capped
    )


def _tiny(x: Tensor) -> float:
    return torch.finfo(x.dtype).tiny


def _own(grad: Tensor, factor: Tensor | None, rows: Rows) -> Tensor:
    """[K] |dz| at the target."""
    entries = grad.gather(1, rows.targets[:, None]).squeeze(1).abs()
    return entries.to(rows.upstream.dtype) if factor is None else entries * factor.abs()


def choose(grad: Tensor, factor: Tensor | None, rows: Rows, own: Tensor, sparse: Sparse, look: Look) -> Kept | None:
    """The rows and columns of a chunk that `sparse` keeps; None where they are too many to pay, or
    one is not finite.
    """
    sizes, vocabulary = rows.sizes(), grad.shape[1]
    top = sizes.amax().clamp(min=_tiny(sizes))
    sizes = sizes / top
    if sparse.eps is None:
        allowed = sparse.error**2 * (own / top).square().sum()
        ascending, order = sizes.sort()
        live = torch.ones_like(sizes, dtype=torch.bool)
        live[order] = 2 * ascending.square().cumsum(0) > SHARE_FOR_ROWS * allowed
    else:
        allowed = torch.full_like(top, torch.inf)
        live = sizes > sparse.eps
    scale = torch.where(live, (1.0 if factor is None else factor.abs()) / top, 0)
    looked = look(grad, scale)
    targeted = (
        torch.zeros(vocabulary, dtype=torch.int32, device=grad.device)
        .scatter_reduce_(0, rows.targets, live.int(), "amax")
        .bool()
    )
    products = torch.where(targeted, 0, looked.largest * looked.total)
    left_out = 2 * torch.where(live, 0, sizes).square().sum()
    eps: Tensor | float | None = sparse.eps
    if eps is None:
        eps = _threshold(looked.largest, products, FOR_COLUMNS * allowed - left_out)
    keep, columns = filled_up((looked.largest > eps) | targeted | ~torch.isfinite(top), 64 if grad.is_cuda else 1)
    if len(columns) > sparse.pays * vocabulary:
        return None
    squared = torch.where(keep, 0, products).sum() + left_out
    dropped = torch.where(keep, 0, looked.total)
    return Kept(columns, live.nonzero().squeeze(1), dropped, looked.row_sums, squared, allowed, sizes, top)


def filled_up(keep: Tensor, multiple: int) -> tuple[Tensor, Tensor]:
    """A mask [V] with more columns, until their number is a multiple (a GPU's matrix instructions
    want that), and the columns.
    """
    count = int(keep.sum())
    order = keep.byte().sort(descending=True, stable=True).indices  # the kept ones first, ascending
    columns = order[: min(-(-count // multiple) * multiple, len(keep))]
    return keep.index_fill(0, columns, True), columns


def _threshold(largest: Tensor, products: Tensor, allowed: Tensor) -> Tensor:
    """The largest power of two, or 0, below which the columns' products add up to no more than
    `allowed`.
    """
    ladder = torch.cat(
        (torch.exp2(-torch.arange(40.0, device=largest.device)), torch.zeros(1, device=largest.device))
    ).to(largest.dtype)
    left_out = (largest[None, :] <= ladder[:, None]).to(largest.dtype) @ products
    over = (~(left_out <= allowed)).sum()  # NaN is over every rung
    return ladder[over.clamp(max=len(ladder) - 1)]
