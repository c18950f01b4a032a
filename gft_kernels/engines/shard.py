"""Where a vocabulary is spread over ranks: what an engine asks of them, for a chunk of K rows.

    chunked    largest: max z [K]    total: (rest, E_y, z_y) [3, K], then the entropy's sum [K]
    triton     own_logits: z_y [K]   merged: (offset, sum, moment) [3, K] of every rank

Each value then is that of the whole vocabulary and has the same bits on all ranks, so whatever
hangs on it is decided alike. The target's entry of a row is on one rank, elsewhere it counts 0.
The gradients of the hidden states are summed over the ranks by `Gradients`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..parallel import VocabularyShard


class ShardEntries:
    """The targets' entries of a chunk [K, V_local]: those rows whose target is here."""

    def __init__(self, targets: Tensor, shard: VocabularyShard, count: int) -> None:
        columns = shard.columns(targets, count)
        self.shard, self.here = shard, columns >= 0
        self.index = (torch.arange(len(targets), device=targets.device), columns.clamp(min=0))

    def read(self, z: Tensor) -> Tensor:  # [K]
        return torch.where(self.here, z[self.index], 0)

    def write(self, z: Tensor, values: Tensor) -> None:
        z[self.index] = torch.where(self.here, values, z[self.index])

    def largest(self, values: Tensor) -> Tensor:
        return self.shard.largest(values)

    def total(self, *sums: Tensor) -> tuple[Tensor, ...]:
        return self.shard.total(torch.stack(sums)).unbind()


def local_targets(targets: Tensor, shard: VocabularyShard | None, count: int) -> Tensor:  # [N]
    """Targets as columns of this rank's `count`, -1 where another rank has them."""
    return targets if shard is None else shard.columns(targets, count)


def own_logits(logits: Tensor, targets: Tensor, shard: VocabularyShard | None) -> Tensor:  # [K]
    """The targets' logits, each from the rank that has it."""
    return logits if shard is None else shard.total(torch.where(targets >= 0, logits, 0))


def merged(partials: Tensor, shard: VocabularyShard | None) -> Tensor:  # [3, tiles or ranks, K]
    """The tiles' partials as one of each rank: tiles are many, and of another number on each.

    Offsets may be powers of two (fp16). The largest of them is one too, and so stay the ratios.
    """
    if shard is None:
        return partials
    offset, total, moment = partials
    largest = torch.where(total == 0, -torch.inf, offset).amax(0)
    largest = torch.where(largest == -torch.inf, 0, largest)  # no tile has mass
    above = (offset - largest).clamp(max=0)
    power = above.exp()
    own = torch.stack((largest, (power * total).sum(0), (power * (moment + above * total)).sum(0)))
    return shard.gathered(own).transpose(0, 1).contiguous()
