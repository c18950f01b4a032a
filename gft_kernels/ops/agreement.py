"""Checks of ranks that share a vocabulary: a call that one of them refuses, all refuse.

A rank that raises alone leaves the others waiting for its sums. So every rank says whether it
refuses its arguments, and what they are, in one all-gather of a few numbers.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ..head import Backend, Head, Operands
from ..losses.advantages import GroupRewards
from ..parallel import VocabularyShard

T = TypeVar("T")
# What must be the same on all ranks, in the order of `_numbers`.
SAME = (
    "shard.size = V",
    "hidden's N",
    "hidden's D",
    "whether hidden and Head.low_rank.hidden need a gradient",
    "a checksum of dtypes, Head and Backend",
    "a checksum of targets and of what chooses rows (zeros of token_weights and advantages, rewards and their ids, "
    "objectives that skip rows)",
)


def together(
    check: Callable[[], T],
    operands: Operands,
    chosen_by: Sequence[Tensor | GroupRewards | bool | None],
    head: Head,
    backend: Backend,
) -> T:
    """What `check()` returns, once every rank has checked and their shards make one vocabulary.

    `chosen_by` is what chooses rows. Each rank must choose the same.
    """
    shard = head.shard
    assert shard is not None
    if not dist.is_initialized():
        raise ValueError("Head.shard needs torch.distributed.init_process_group: there are no other ranks yet.")
    if dist.get_rank(shard.group) < 0:
        raise ValueError("Head.shard.group does not hold this process: give each rank the group it belongs to.")
    if not backend.validate:
        return check()
    own = torch.zeros(3 + len(SAME), dtype=torch.int64)
    try:
        checked = check()
        own[1:] = torch.tensor(_numbers(operands, chosen_by, head, backend))
    except Exception:
        own[0] = 1
        shard.gathered(own.to(_device(operands)))
        raise
    _check_ranks(shard.gathered(own.to(_device(operands))).tolist())
    return checked


def _device(operands: Operands) -> torch.device:
    """Where the group can gather numbers, though an operand may be anything yet."""
    return next((x.device for x in operands if isinstance(x, Tensor)), torch.device("cpu"))


def refuse(shard: VocabularyShard, name: str) -> None:
    """Refuse what cannot run on a part of the vocabulary."""
    raise ValueError(
        f"{name} and Head.shard do not go together: rows {shard.start}... are a part of V = {shard.size}. Use "
        "backend='chunked' or 'triton' without sparsity, or gather the weight."
    )


def _numbers(
    operands: Operands, chosen_by: Sequence[Tensor | GroupRewards | bool | None], head: Head, backend: Backend
) -> list[int]:
    """The shard's rows, then what SAME names."""
    hidden, weight, _, low_hidden, low_weight = operands
    assert head.shard is not None
    dtypes = [None if x is None else x.dtype for x in operands]
    rank = 0 if low_weight is None else low_weight.shape[-1]
    settings = (dtypes, rank, head.scale, head.softcap, head.temperature, head.ignore_index, backend)
    low_wants = low_hidden is not None and low_hidden.requires_grad
    wants = torch.is_grad_enabled() * (hidden.requires_grad + 2 * low_wants)
    said = [x for given in chosen_by for x in _parts(given)]
    sums = torch.stack([_sum_of_bits(x) for x in said if isinstance(x, Tensor)]).tolist()
    sums += [x for x in said if not isinstance(x, Tensor)]
    return [head.shard.start, len(weight), head.shard.size, *hidden.shape, wants, _checksum(settings), _checksum(sums)]


def _checksum(x: object) -> int:
    return zlib.crc32(repr(x).encode())  # hash() differs between processes


def _parts(given: Tensor | GroupRewards | bool | None) -> tuple[object, ...]:
    """What is compared of an input. Of other floats than rewards it is where they are 0."""
    if isinstance(given, GroupRewards):
        bits = given.rewards.double().view(torch.int64)
        return bits, given.group_ids, given.sequence_ids, given.scale, given.singleton, given.eps
    if isinstance(given, Tensor) and given.is_floating_point():
        return (given != 0,)
    return (given,)


def _sum_of_bits(x: Tensor) -> Tensor:
    """A number of a vector of integers, in which their order counts."""
    return (x.long() * torch.arange(1, len(x) + 1, device=x.device)).sum()


def _check_ranks(ranks: list[list[int]]) -> None:
    """The same error on every rank, where they do not fit together."""
    refused = [rank for rank, numbers in enumerate(ranks) if numbers[0]]
    if refused:
        raise ValueError(f"rank {refused[0]} of Head.shard.group refuses its arguments: see the error it raised.")
    for name, values in zip(SAME, zip(*(numbers[3:] for numbers in ranks), strict=True), strict=True):
        if len(set(values)) > 1:
            raise ValueError(
                f"{name} differs between the ranks of Head.shard.group: {list(values)}. hidden and all that is given "
                "per token must be the same on all ranks. Where each has its own rows, gather them first: "
                "gft_kernels.parallel.gather_rows."
            )
    shards = sorted((start, start + rows, rank) for rank, (_, start, rows, *_) in enumerate(ranks))
    said = ", ".join(f"rank {rank} {start}..{stop - 1}" for start, stop, rank in shards)
    ends = [0, *(stop for _, stop, _ in shards)]
    for (start, _, rank), end in zip(shards, ends, strict=False):
        if start != end:
            problem = "overlaps others" if start < end else f"leaves out the rows from {end}"
            raise ValueError(f"Head.shard of rank {rank} begins at {start} and {problem}. Rows by rank: {said}.")
    if ends[-1] != ranks[0][3]:
        raise ValueError(f"Head.shard: the ranks hold {ends[-1]} rows, size is {ranks[0][3]}. Rows by rank: {said}.")
