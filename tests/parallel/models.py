"""Models sharded by PyTorch itself, trained on three processes through `VocabularyShard.of`."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

from gft_kernels import Head, gft, linear_policy_loss, token_weights
from gft_kernels.parallel import VocabularyShard, gather_rows

from .processes import RANKS

N, D, V, STEPS = 16, 12, 61, 2
ALL = slice(None)
# Rows by rank, where each has its own.
ROWS = {"uneven rows": (5, 9, 2), "a rank without rows": (0, 10, 6)}


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.backbone = nn.Sequential(nn.Embedding(V, D), nn.Linear(D, D), nn.Tanh(), nn.Linear(D, D))
        self.lm_head = nn.Linear(D, V)


def data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(ids, targets, advantages, sequence ids), [N] each. Each sequence is whole on a rank."""
    g = torch.Generator().manual_seed(2)
    ids, targets = torch.randint(V, (N,), generator=g), torch.randint(V, (N,), generator=g)
    targets[3] = -100
    return ids, targets, torch.randn(N, generator=g), torch.repeat_interleave(torch.tensor([5, 4, 5, 2]))


DATA = data()
Step = Callable[[Tiny], Tensor]  # the loss of a step


def trained(model: Tiny, step: Step) -> dict[str, Tensor]:
    """Gradients of the first step, and parameters after the last."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    found: dict[str, Tensor] = {}
    for number in range(STEPS):
        optimizer.zero_grad()
        loss = step(model)
        loss.backward()
        found[f"loss {number}"] = loss.detach().clone()
        if not number:
            found |= gradients(model)
        optimizer.step()
    return found | {name: whole(p) for name, p in model.named_parameters()}


def gradients(model: Tiny) -> dict[str, Tensor]:
    return {f"d {name}": whole(p.grad) for name, p in model.named_parameters()}


def whole(x: Tensor | None) -> Tensor:
    assert x is not None
    return (x.full_tensor() if isinstance(x, DTensor) else x).detach().clone()


def loss_of(
    hidden: Tensor, lm_head: nn.Linear, targets: Tensor, advantages: Tensor, weights: Tensor | None = None
) -> Tensor:
    """The head's loss. A DTensor's rows stay where they are."""
    weight, bias, shard = lm_head.weight, lm_head.bias, None
    if isinstance(weight, DTensor):
        shard, weight, bias = VocabularyShard.of(weight), weight.to_local(), bias.to_local()
    given = {"objective": gft(0.1), "token_weights": weights, "head": Head(bias, shard=shard)}
    return linear_policy_loss(hidden, weight, targets, advantages, **given).loss


def same_data(model: Tiny) -> Tensor:
    ids, targets, advantages, _ = DATA
    return loss_of(model.backbone(ids), model.lm_head, targets, advantages)


def own(rows: tuple[int, ...]) -> slice:
    first = sum(rows[: dist.get_rank()])
    return slice(first, first + rows[dist.get_rank()])


def own_data(rows: tuple[int, ...], model: Tiny, reduce: str = "avg") -> Tensor:
    """The loss where each rank has its own rows, as under FSDP2."""
    ids, targets, advantages, _ = (x[own(rows)] for x in DATA)
    hidden, targets, advantages, nothing = gather_rows(model.backbone(ids), targets, advantages, None, reduce=reduce)
    assert nothing is None
    assert not advantages.requires_grad
    return loss_of(hidden, model.lm_head, targets, advantages)


def sequence_means(at: slice, model: Tiny, **counts: int) -> Tensor:
    """Weights are those of the rows at hand, with the counts of all ranks."""
    ids, targets, advantages, sequences = (x[at] for x in DATA)
    weights = token_weights("seq-mean-token-mean", targets != -100, sequences, **counts)
    rows = (model.backbone(ids), targets, advantages, weights)
    hidden, *given = gather_rows(*rows) if counts else rows
    return loss_of(hidden, model.lm_head, *given)


def worst(found: dict[str, Tensor], want: dict[str, Tensor]) -> float:
    assert found.keys() == want.keys()
    return max(float((found[n] - x).abs().max() / x.abs().max()) for n, x in want.items())


def fsdp(step: Step, alone: Step = same_data) -> float:
    mesh, model = init_device_mesh("cpu", (RANKS,)), Tiny()
    fully_shard(model.backbone, mesh=mesh)
    fully_shard(model.lm_head, mesh=mesh)
    return worst(trained(model, step), trained(Tiny(), alone))


def fsdp_of_sequences() -> float:
    at = own(ROWS["uneven rows"])
    return fsdp(lambda model: sequence_means(at, model, num_sequences=4), lambda model: sequence_means(ALL, model))


def summed(step: Step) -> float:
    """Gradients of the backbone summed over the ranks by hand."""
    model, want = Tiny(), trained(Tiny(), same_data)
    step(model).backward()
    for p in model.backbone.parameters():
        dist.all_reduce(p.grad)
    found = gradients(model)
    return worst(found, {name: want[name] for name in found})


def tensor_parallel() -> float:
    model = Tiny()
    parallelize_module(model.lm_head, init_device_mesh("cpu", (RANKS,)), ColwiseParallel())
    return worst(trained(model, same_data), trained(Tiny(), same_data))


def cases() -> dict[str, Callable[[], float]]:
    found: dict[str, Callable[[], float]] = {
        f"FSDP2, {name}": functools.partial(fsdp, functools.partial(own_data, rows)) for name, rows in ROWS.items()
    }
    return found | {
        "FSDP2, sequence means": fsdp_of_sequences,
        "summed by hand": functools.partial(summed, functools.partial(own_data, ROWS["uneven rows"], reduce="sum")),
        "tensor parallelism": tensor_parallel,
    }
