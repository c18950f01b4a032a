"""Which columns of a chunk's logit gradient are kept, and what is known of the rest.

For a chunk of rows with upstream gradients u_i of log p, dz_ij = u_i (1[j = y_i] - p_ij). With
M_ij = |dz_ij| off the target, size_i = |u_i| (1 - p_iy) = sum_j M_ij, which no entry of the row
exceeds, and g = max_i size_i:

    kept rows     size_i > eps g
    kept columns  M_ij > eps g in some kept row, and the targets of kept rows
    bound^2       sum_dropped (max_i M_ij) (sum_i M_ij) + 2 sum_(rows not kept) size_i^2   >=   |what is dropped|^2

A soft cap makes entries smaller than these sizes, so the bound still holds. docs/column-sparse.md
derives it.

Cost: one look at dz.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..head import Sparse
from .accumulate import ChunkGradient, Rows

# Of the squared error that is allowed: for the rows left out, and for them and the columns together.
# What remains is for the tail (sparse.py).
SHARE_FOR_ROWS, FOR_COLUMNS = 0.1, 0.8


class Looked(NamedTuple):
    """One look at scale_i |grad_ij| of a chunk; the targets' entries may be in it or not."""

    largest: Tensor  # [V] over rows
    total: Tensor  # [V] over rows
    row_sums: Tensor | None  # [K] of grad itself; None: they are 0


Look = Callable[[Tensor, Tensor], Looked]


def look(
    grad: Tensor,  # [K, V]
    scale: Tensor,  # [K]
) -> Looked:
    """`Looked` of a gradient that is nowhere negative but at the targets."""
    largest, buffer = grad.new_zeros(grad.shape[1]), torch.empty_like(grad[:16])
    for rows, factor in zip(grad.split(16), scale.split(16), strict=True):  # 16 rows: the products stay in cache
        torch.maximum(largest, torch.mul(rows, factor[:, None], out=buffer[: len(rows)]).amax(0), out=largest)
    return Looked(largest, scale @ grad, None)


def look_capped(grad: Tensor, scale: Tensor) -> Looked:
    """The same where a soft cap's slope is in grad, and its rows do not add up to 0."""
    return look(grad, scale)._replace(row_sums=grad.sum(1))


class Kept(NamedTuple):
    """What is kept of a chunk, and what is known of the rest.

    All but `top` is in multiples of it, so that no square underflows.
    """

    columns: Tensor  # [n]
    rows: Tensor  # [m] ascending
    dropped: Tensor  # [V] sums over rows of the dropped |dz|, 0 at kept columns
    row_sums: Tensor | None  # [K] of grad
    squared: Tensor  # bound of the squared error, tail apart
    allowed: Tensor  # of the squared error, tail included
    sizes: Tensor  # [K]
    top: Tensor  # the largest size


def tiny(x: Tensor) -> float:
    return torch.finfo(x.dtype).tiny


def target_entries(chunk: ChunkGradient, rows: Rows) -> Tensor:  # [K]
    """|dz| at the targets."""
    entries = chunk.grad.gather(1, rows.targets[:, None]).squeeze(1).abs()
    return entries.to(rows.upstream.dtype) if chunk.factor is None else entries * chunk.factor.abs()


def choose(chunk: ChunkGradient, rows: Rows, own: Tensor, sparse: Sparse, look: Look) -> Kept | None:
    """The rows and columns of a chunk that `sparse` keeps, given its target entries `own` [K].

    None where they are too many to pay, or one is not finite.
    """
    grad, factor = chunk.grad, chunk.factor
    sizes, vocabulary = rows.sizes(), grad.shape[1]
    top = sizes.amax().clamp(min=tiny(sizes))
    sizes = sizes / top
    live, allowed = _kept_rows(sizes, own / top, sparse)
    looked = look(grad, torch.where(live, (1.0 if factor is None else factor.abs()) / top, 0))
    targeted = torch.zeros(vocabulary, dtype=torch.int32, device=grad.device)
    targeted = targeted.scatter_reduce_(0, rows.targets, live.int(), "amax").bool()
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


def _kept_rows(sizes: Tensor, own: Tensor, sparse: Sparse) -> tuple[Tensor, Tensor]:
    """(mask [K] of the rows to keep, the squared error that is allowed in all)."""
    if sparse.eps is not None:
        return sizes > sparse.eps, sizes.new_full((), torch.inf)
    allowed = sparse.error**2 * own.square().sum()
    ascending, order = sizes.sort()
    live = torch.ones_like(sizes, dtype=torch.bool)
    live[order] = 2 * ascending.square().cumsum(0) > SHARE_FOR_ROWS * allowed
    return live, allowed


def filled_up(keep: Tensor, multiple: int) -> tuple[Tensor, Tensor]:
    """A mask [V] with more columns until their number is a multiple, and the columns.

    A GPU's matrix instructions want multiples.
    """
    count = int(keep.sum())
    order = keep.byte().sort(descending=True, stable=True).indices  # the kept ones first, ascending
    columns = order[: min(-(-count // multiple) * multiple, len(keep))]
    return keep.index_fill(0, columns, True), columns


def _threshold(largest: Tensor, products: Tensor, allowed: Tensor) -> Tensor:
    """The largest power of two, or 0, below which the columns' products add up to at most `allowed`."""
    powers = torch.exp2(-torch.arange(40.0, device=largest.device))
    ladder = torch.cat((powers, powers.new_zeros(1))).to(largest.dtype)
    left_out = (largest[None, :] <= ladder[:, None]).to(largest.dtype) @ products
    over = (~(left_out <= allowed)).sum()  # NaN is over every rung
    return ladder[over.clamp(max=len(ladder) - 1)]
