"""Calls with a shard that must be refused: by name, on all ranks alike, nobody left waiting."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from gft_kernels import (
    Backend,
    GroupRewards,
    Head,
    LowRank,
    Sparse,
    gft,
    linear_logprob,
    linear_policy_loss,
    logits_policy_loss,
    sft,
)
from gft_kernels.parallel import VocabularyShard, gather_rows

N, D, V = 6, 4, 9
SHARDS = {0: (0, 3), 1: (3, 4), 2: (7, 2)}  # start and rows by rank
HIDDEN, WEIGHT, TARGETS, ADVANTAGES = torch.ones(N, D), torch.ones(V, D), torch.arange(N), torch.ones(N)


def call(
    shards: dict[int, tuple[int, int]] = SHARDS,
    size: int = V,
    targets: torch.Tensor = TARGETS,
    advantages: Any = ADVANTAGES,
    hidden: torch.Tensor = HIDDEN,
    bias: torch.Tensor | None = None,
    backend: str | Backend = "chunked",
    op: str = "loss",
    objective: Any = gft(0.5),  # noqa: B008  (frozen)
    **kwargs: Any,
) -> str:
    start, rows = shards[dist.get_rank()]
    head, weight = Head(bias, shard=VocabularyShard(start, size), **kwargs), WEIGHT[:1].expand(rows, D)
    if op == "log p":
        linear_logprob(hidden, weight, targets, head=head, backend=backend)
    elif op == "logits":
        logits_policy_loss(HIDDEN, targets % D, advantages, head=head)
    else:
        linear_policy_loss(hidden, weight, targets, advantages, objective=objective, head=head, backend=backend)
    return "taken"


def on_rank_one(name: str, there: Any, elsewhere: Any) -> str:
    return call(**{name: there if dist.get_rank() == 1 else elsewhere})


def low_rank(rank: int, wanted: bool = False) -> LowRank:
    rows = SHARDS[dist.get_rank()][1]
    return LowRank(torch.ones(N, rank, requires_grad=wanted), torch.ones(rows, rank))


def small_chunks() -> str:
    """Ranks of 70 and of 5 rows: each by itself would take chunks of its own size."""
    from gft_kernels.engines.triton import engine

    rows, shards = torch.ones(130), {0: (0, 70), 1: (70, 5), 2: (75, 5)}
    given = {"targets": torch.arange(130) % 80, "advantages": rows, "hidden": rows[:, None].expand(-1, D)}
    with mock.patch.object(engine, "CHUNK_BYTES", 128 * 128 * 4):
        return call(shards, 80, **given, backend="triton")


def outside_group() -> str:
    group = dist.new_group([0, 1])
    if dist.get_rank() < 2:
        return "Head.shard.group does not hold this process"
    linear_logprob(HIDDEN, WEIGHT, TARGETS, head=Head(shard=VocabularyShard(0, V, group)))
    return "taken"


def of(*placements: Any, shape: tuple[int, ...] = (3,)) -> str:
    mesh = init_device_mesh("cpu", shape)
    return str(VocabularyShard.of(DTensor.from_local(WEIGHT, mesh, placements, run_check=False)))


def rewards_of(rewards: list[float], groups: list[int] = [0, 0], sequences: int = 2, **how: Any) -> GroupRewards:  # noqa: B006
    return GroupRewards(torch.tensor(rewards), torch.tensor(groups), torch.arange(N) % sequences, **how)


def elsewhere(start: int, rows: int, rank: int = 1) -> dict[int, tuple[int, int]]:
    return SHARDS | {rank: (start, rows)}


# By name: a call, and what every rank says: two texts where one rank refuses by itself.
CASES: dict[str, tuple[Callable[[], str], str]] = {
    "a shard overlaps": (
        functools.partial(call, elsewhere(2, 5)),
        r"of rank 1 begins at 2 and overlaps.* rank 0 0\.\.2",
    ),
    "rows are missing": (
        functools.partial(call, elsewhere(4, 3)),
        r"rank 1 begins at 4 and leaves out the rows from 3",
    ),
    "rows end too late": (
        functools.partial(call, elsewhere(7, 3, 2)),
        r"the ranks hold 10 rows, size is 9\..*rank 2 7\.\.9",
    ),
    "rows end too early": (functools.partial(call, elsewhere(7, 1, 2)), "the ranks hold 8 rows, size is 9"),
    "a start is negative": (functools.partial(call, elsewhere(-1, 3, 0)), "of rank 0 begins at -1 and overlaps"),
    "all hold the whole": (functools.partial(call, dict.fromkeys(range(3), (0, V))), "begins at 0 and overlaps"),
    "a rank has no rows": (
        functools.partial(call, elsewhere(3, 0)),
        "weight has shape|rank 1 of Head.shard.group refuses",
    ),
    "sizes differ": (functools.partial(on_rank_one, "size", 10, 9), r"size = V differs .*\[9, 10, 9\]"),
    "N differs": (functools.partial(on_rank_one, "hidden", torch.ones(5, D), HIDDEN), "targets has shape|rank 1 of"),
    "D differs": (functools.partial(on_rank_one, "hidden", torch.ones(N, 3), HIDDEN), "last dimension D|rank 1 of"),
    "one needs no gradient": (
        functools.partial(on_rank_one, "hidden", HIDDEN.clone().requires_grad_(), HIDDEN),
        r"whether hidden and Head.low_rank.hidden need a gradient differs .*\[0, 1, 0\]",
    ),
    "one low-rank addition needs no gradient": (
        lambda: on_rank_one("low_rank", low_rank(2, True), low_rank(2)),
        r"whether hidden and Head.low_rank.hidden need a gradient differs .*\[0, 2, 0\]",
    ),
    "one has no low-rank addition": (
        lambda: on_rank_one("low_rank", None, low_rank(2)),
        "a checksum of dtypes, Head and Backend differs",
    ),
    "ranks of low-rank additions differ": (
        lambda: on_rank_one("low_rank", low_rank(3), low_rank(2)),
        "a checksum of dtypes, Head and Backend differs",
    ),
    "targets differ": (
        functools.partial(on_rank_one, "targets", TARGETS.flip(0), TARGETS),
        "checksum of targets.*gather_rows",
    ),
    "dead rows differ": (
        functools.partial(on_rank_one, "advantages", ADVANTAGES.index_fill(0, torch.tensor(2), 0), ADVANTAGES),
        "checksum of targets and of what chooses rows",
    ),
    "rewards differ": (
        functools.partial(on_rank_one, "advantages", rewards_of([0.5, 0.5]), rewards_of([0.5, 0.6])),
        "checksum of targets and of what chooses rows",
    ),
    "groups differ": (
        functools.partial(on_rank_one, "advantages", rewards_of([0.5, 0.6], [0, 1]), rewards_of([0.5, 0.6])),
        "checksum of targets and of what chooses rows",
    ),
    "sequences differ": (
        functools.partial(on_rank_one, "advantages", rewards_of([0.5, 0.6], [0, 0], 1), rewards_of([0.5, 0.6])),
        "checksum of targets and of what chooses rows",
    ),
    "singletons differ": (
        functools.partial(
            on_rank_one,
            "advantages",
            rewards_of([0.5, 0.6], [0, 1], singleton="zero"),
            rewards_of([0.5, 0.6], [0, 1]),
        ),
        "checksum of targets and of what chooses rows",
    ),
    "one objective skips rows": (
        functools.partial(on_rank_one, "objective", gft(0.5), sft()),
        "checksum of targets and of what chooses rows",
    ),
    "chunks differ": (
        functools.partial(on_rank_one, "backend", Backend("chunked", chunk_rows=2), "chunked"),
        "a checksum of dtypes, Head and Backend differs",
    ),
    "temperatures differ": (functools.partial(on_rank_one, "temperature", 0.5, 1.0), "a checksum of dtypes, Head"),
    "one has a bias of another V": (
        functools.partial(on_rank_one, "bias", torch.ones(V), None),
        r"Head.bias has shape \(9,\)|rank 1 of Head.shard.group refuses its arguments",
    ),
    "one has a list for hidden": (functools.partial(on_rank_one, "hidden", [1.0], HIDDEN), "hidden is list|rank 1 of"),
    "a target in no shard": (
        functools.partial(call, targets=TARGETS + 4),
        r"targets\[5\] = 9 is outside the vocabulary 0..8",
    ),
    "a target in no shard, log p": (
        functools.partial(call, targets=TARGETS + 4, op="log p"),
        r"targets\[5\] = 9 is outside",
    ),
    "the eager engine": (functools.partial(call, backend="eager"), "backend='eager' and Head.shard do not go together"),
    "sparsity": (
        functools.partial(call, backend=Backend("chunked", sparsity=Sparse())),
        "Backend.sparsity and Head.shard",
    ),
    "logits": (functools.partial(call, op="logits"), "Head.shard is for linear_policy_loss and linear_logprob"),
    "a process outside the group": (outside_group, "Head.shard.group does not hold this process"),
    "a replicated DTensor": (functools.partial(of, Replicate()), r"Replicate.*a vocabulary shard is \(Shard\(0\),\)"),
    "a DTensor in columns": (functools.partial(of, Shard(1)), r"a vocabulary shard is \(Shard\(0\),\)"),
    "a DTensor over two dimensions": (functools.partial(of, Replicate(), Shard(0), shape=(1, 3)), "of 2 dimensions"),
    "a plain tensor": (lambda: str(VocabularyShard.of(WEIGHT)), "weight is Tensor, not a DTensor.*lm_head"),
    "another reduction": (lambda: str(gather_rows(HIDDEN, TARGETS, reduce="mean")), "reduce = 'mean': give 'avg'"),
    "rewards to gather": (lambda: str(gather_rows(HIDDEN, TARGETS, rewards_of([0.5, 0.5]))), "GroupRewards is not a"),
    "one has rows of another number": (
        lambda: str(gather_rows(HIDDEN, TARGETS[dist.get_rank() == 1 :])),
        r"\(5,\): it must have the 6 rows of hidden|rank 1 of the group refuses its arguments",
    ),
    "rows of another number": (
        lambda: str(gather_rows(HIDDEN, TARGETS[1:])),
        r"\(5,\): it must have the 6 rows of hidden",
    ),
    # What is right is taken after all of that: the ranks are still in step.
    "a call that is right": (call, "^taken$"),
    "ranks of very different sizes": (small_chunks, "^taken$"),
    "log p that is right": (functools.partial(call, op="log p", backend=Backend("chunked", validate=False)), "^taken$"),
}


def cases(asked: Collection[str]) -> dict[str, Callable[[], str]]:
    return {name: case for name, (case, _) in CASES.items() if name in asked}
