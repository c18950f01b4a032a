"""A head whose vocabulary is spread over processes: which rows each one holds, and what they sum.

With hidden [N, D] and targets the same on all ranks, log p of a row needs the largest logit and a
few sums over the ranks, [K] each, and dhidden is one sum [N, D] at the end. The gradients of a
rank's own rows of the weight never leave it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["VocabularyShard", "gather_rows"]


@dataclass(frozen=True, eq=False)
class VocabularyShard:
    """This rank's rows of the head's weight, `weight[start : start + V_local]` of V = `size`.

    Given as `Head(shard=...)`, it makes the ops compute the whole head over `group`: weight
    [V_local, D] and bias [V_local] are this rank's, targets are ids of the whole vocabulary.
    Without it nothing can see that a weight is a shard, and where all targets happen to lie inside,
    the result is wrong in silence: a softmax over a part of the vocabulary.

    Equivalent to, on every rank, for the whole weight and a plain op::

        whole = torch.cat(all_gather(weight))  # [V, D]
        loss = linear_policy_loss(hidden, whole, targets, ...).loss
        dhidden, dwhole = torch.autograd.grad(loss, (hidden, whole))
        dweight = dwhole[start : start + len(weight)]

    hidden, targets and all that is given per token must be the same on all ranks of the group, and
    so must the loss that is back-propagated. Where each rank has its own, `gather_rows` comes
    first. `VocabularyShard.of(dtensor)` reads start, size and group from a weight that tensor
    parallelism or FSDP2 has sharded, and `dtensor.to_local()` is then the weight.

    Args:
        start: the first row of the whole weight that this rank holds.
        size: V, the rows of all ranks together. Ranks may hold different numbers, at least one.
        group: the process group, None for all processes.

    Raises:
        ValueError: at the call, on all ranks alike: shards that overlap, leave rows out or do not
            end at `size`; other data on another rank; the eager engine, sparsity or logits.
            `Backend.validate=False` leaves out what needs the ranks to compare.
        TypeError: `of` is given what is no DTensor.

    Cost: GEMMs over V_local in place of V. Communicated in a pass, for an active row in fp32:
    chunked 20 bytes in three all-reduces a chunk, Triton 4 in an all-reduce and 12 a rank in an
    all-gather. The backward all-reduces dhidden, 4ND bytes, and 4Nr beside a low-rank addition. The
    checks gather 72 bytes a rank.
    """

    start: int
    size: int
    group: dist.ProcessGroup | None = None

    @classmethod
    def of(cls, weight: Tensor) -> VocabularyShard:
        """The shard of a DTensor [V, D] that is Shard(0) over a mesh of one dimension."""
        from torch.distributed.tensor import DTensor, Shard

        if not isinstance(weight, DTensor):
            raise TypeError(
                f"weight is {type(weight).__name__}, not a DTensor: give VocabularyShard(start, size, group) yourself. "
                "An FSDP2 weight is one while its module is sharded: give lm_head a fully_shard of its own, and do "
                "not call its forward."
            )
        mesh, placements = weight.device_mesh, weight.placements
        if mesh.ndim != 1 or placements != (Shard(0),):
            raise ValueError(
                f"weight is {placements} over a mesh of {mesh.ndim} dimensions: a vocabulary shard is (Shard(0),) over "
                "one. For other placements pass weight.full_tensor(...) as a plain weight."
            )
        each = -(-weight.shape[0] // mesh.size())  # as torch.chunk: only the last ranks hold fewer
        return cls(min(mesh.get_local_rank() * each, weight.shape[0]), weight.shape[0], mesh.get_group())

    @property
    def ranks(self) -> int:
        return dist.get_world_size(self.group)

    @property
    def width(self) -> int:
        """Rows of a rank if all had as many: a number that is the same on all ranks."""
        return -(-self.size // self.ranks)

    def columns(self, targets: Tensor, count: int) -> Tensor:  # [N]
        """Targets as rows of this rank's `count`, -1 where another rank has them."""
        column = targets - self.start
        return torch.where((column >= 0) & (column < count), column, -1)

    def largest(self, values: Tensor) -> Tensor:
        """The maximum over the ranks, in place."""
        dist.all_reduce(values, dist.ReduceOp.MAX, group=self.group)
        return values

    def total(self, values: Tensor) -> Tensor:
        """The sum over the ranks, in place."""
        dist.all_reduce(values, group=self.group)
        return values

    def gathered(self, values: Tensor) -> Tensor:  # [ranks, ...]
        """The values of all ranks, of one shape everywhere."""
        return _all_gather(values, self.group)


def gather_rows(
    hidden: Tensor,  # [n, D]
    targets: Tensor,  # [n]
    *per_token: Tensor | None,  # [n] each
    group: dist.ProcessGroup | None = None,
    reduce: str = "avg",
) -> tuple[Any, ...]:  # [N, D], [N], [N] each
    """The rows of all ranks, in the order of the ranks: what a `VocabularyShard` is called with.

    Under FSDP2 every rank has other data. Gathering hidden states moves N x D numbers where
    gathering the weight moves V x D, and a rank then forms V / ranks rows of its gradient.

    Equivalent to::

        hidden = torch.cat(all_gather(hidden))  # differentiable
        targets = torch.cat(all_gather(targets))
        per_token = [None if x is None else torch.cat(all_gather(x)) for x in per_token]

    Args:
        hidden: [n, D] of this rank. n may differ between ranks, and may be 0.
        targets: [n].
        per_token: [n] each, or None on all ranks. They are constants: no gradient reaches them.
        group: the process group of the shard.
        reduce: how the gradients of the backbone are reduced over the ranks afterwards. "avg" is
            that of FSDP2 and DDP: a rank's rows then get their gradient times the number of ranks,
            so that the average is the sum that one process would have. "sum" leaves it.

    Returns:
        (hidden, targets, *per_token) with N rows, N the sum of all n. hidden is differentiable into
        this rank's rows; its gradient must be the same on all ranks, as that of a shard is.

    Raises:
        ValueError: on all ranks: reduce is neither "avg" nor "sum", or a tensor of one rank has
            other rows than its hidden.
        TypeError: on all ranks: what is given per token is no tensor, such as `GroupRewards`.

    Cost: an all-gather of every tensor, padded to the largest n. Nothing is communicated in the
    backward.
    """
    return _gather(hidden, (targets, *per_token), group, reduce)


@torch.compiler.disable(reason="gather_rows needs fullgraph=False: ranks wait for each other between two graphs")
def _gather(
    hidden: Tensor, rows: tuple[Tensor | None, ...], group: dist.ProcessGroup | None, reduce: str
) -> tuple[Any, ...]:
    error = _unfit(hidden, rows, reduce)
    # A rank that raised alone would leave the others waiting.
    counts = _all_gather(torch.tensor(-1 if error else len(hidden), device=hidden.device), group).tolist()
    if error is not None:
        raise error
    if -1 in counts:
        raise ValueError(f"rank {counts.index(-1)} of the group refuses its arguments: see the error it raised.")
    scale = len(counts) if reduce == "avg" else 1
    constants = (None if x is None else _joined(x.detach(), counts, group) for x in rows)
    return _GatherRows.apply(hidden, counts, group, scale), *constants


def _unfit(hidden: Tensor, rows: tuple[Tensor | None, ...], reduce: str) -> Exception | None:
    """What `gather_rows` raises for its arguments."""
    if reduce not in ("avg", "sum"):
        return ValueError(f"reduce = {reduce!r}: give 'avg' (FSDP2, DDP) or 'sum'.")
    for x in rows:
        if x is not None and not isinstance(x, Tensor):
            return TypeError(
                f"{type(x).__name__} is not a tensor [n]: rewards become advantages first, by group_advantages, "
                "where whole groups are."
            )
        if x is not None and x.shape[:1] != hidden.shape[:1]:
            return ValueError(f"a tensor has shape {tuple(x.shape)}: it must have the {len(hidden)} rows of hidden.")
    return None


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, counts: list[int], group: dist.ProcessGroup | None, scale: int) -> Tensor:
        first = sum(counts[: dist.get_rank(group)])
        ctx.own, ctx.scale = slice(first, first + len(hidden)), scale
        return _joined(hidden, counts, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0][ctx.own] * ctx.scale, None, None, None


def _all_gather(values: Tensor, group: dist.ProcessGroup | None) -> Tensor:  # [ranks, ...]
    found = values.new_empty(dist.get_world_size(group), *values.shape)
    dist.all_gather(list(found.unbind()), values, group=group)
    return found


def _joined(rows: Tensor, counts: list[int], group: dist.ProcessGroup | None) -> Tensor:
    """Rows [n, ...] of all ranks one after the other; those that have fewer send padding."""
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    gathered = _all_gather(padded, group)
    return torch.cat([part[:count] for part, count in zip(gathered, counts, strict=True)])
