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

from gft_kernels import Head, gft, linear_policy_loss
from gft_kernels.parallel import VocabularyShard, gather_rows

from .processes import RANKS

N, D, V, STEPS = 16, 12, 61, 2
# Rows by rank, where each has its own.
ROWS = {"uneven rows": (5, 9, 2), "a rank without rows": (0, 10, 6)}


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.backbone = nn.Sequential(nn.Embedding(V, D), nn.Linear(D, D), nn.Tanh(), nn.Linear(D, D))
        self.lm_head = nn.Linear(D, V)


def data() -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(2)
    ids, targets = torch.randint(V, (N,), generator=g), torch.randint(V, (N,), generator=g)
    targets[3] = -100
    return ids, targets, torch.randn(N, generator=g)


def trained(model: Tiny, loss_of: Callable[[Tiny], Tensor]) -> dict[str, Tensor]:
    """Gradients of the first step, and parameters after the last."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    found: dict[str, Tensor] = {}
    for step in range(STEPS):
        optimizer.zero_grad()
        found[f"loss {step}"] = loss_of(model).detach().clone()
        if not step:
            found |= {f"d {name}": whole(p.grad) for name, p in model.named_parameters()}
        optimizer.step()
    return found | {name: whole(p) for name, p in model.named_parameters()}


def whole(x: Tensor | None) -> Tensor:
    assert x is not None
    return (x.full_tensor() if isinstance(x, DTensor) else x).detach().clone()


def step(hidden: Tensor, lm_head: nn.Linear, targets: Tensor, advantages: Tensor) -> Tensor:
    """Loss of the head, differentiated. A DTensor's rows stay where they are."""
    weight, bias, shard = lm_head.weight, lm_head.bias, None
    if isinstance(weight, DTensor):
        shard, weight, bias = VocabularyShard.of(weight), weight.to_local(), bias.to_local()
    found = linear_policy_loss(hidden, weight, targets, advantages, objective=gft(0.1), head=Head(bias, shard=shard))
    found.loss.backward()
    return found.loss


def own_data(rows: tuple[int, ...], model: Tiny) -> Tensor:
    """A step where each rank has its own rows, as under FSDP2."""
    first = sum(rows[: dist.get_rank()])
    ids, targets, advantages = (x[first : first + rows[dist.get_rank()]] for x in data())
    hidden, targets, advantages, nothing = gather_rows(model.backbone(ids), targets, advantages, None)
    assert nothing is None
    assert not advantages.requires_grad
    return step(hidden, model.lm_head, targets, advantages)


def same_data(model: Tiny) -> Tensor:
    ids, targets, advantages = data()
    return step(model.backbone(ids), model.lm_head, targets, advantages)


def worst(found: dict[str, Tensor], want: dict[str, Tensor]) -> float:
    assert found.keys() == want.keys()
    return max(float((found[n] - x).abs().max() / x.abs().max()) for n, x in want.items())


def fsdp(rows: tuple[int, ...]) -> float:
    mesh, model = init_device_mesh("cpu", (RANKS,)), Tiny()
    fully_shard(model.backbone, mesh=mesh)
    fully_shard(model.lm_head, mesh=mesh)
    return worst(trained(model, functools.partial(own_data, rows)), trained(Tiny(), same_data))


def summed() -> float:
    """Gradients of the backbone summed over the ranks by hand."""
    model, want, rows = Tiny(), trained(Tiny(), same_data), ROWS["uneven rows"]
    first = sum(rows[: dist.get_rank()])
    ids, targets, advantages = (x[first : first + rows[dist.get_rank()]] for x in data())
    hidden, *given = gather_rows(model.backbone(ids), targets, advantages, reduce="sum")
    step(hidden, model.lm_head, *given)
    for p in model.backbone.parameters():
        dist.all_reduce(p.grad)
    found = {f"d {name}": whole(p.grad) for name, p in model.named_parameters()}
    return worst(found, {name: want[name] for name in found})


def tensor_parallel() -> float:
    model = Tiny()
    parallelize_module(model.lm_head, init_device_mesh("cpu", (RANKS,)), ColwiseParallel())
    return worst(trained(model, same_data), trained(Tiny(), same_data))


def cases() -> dict[str, Callable[[], float]]:
    found: dict[str, Callable[[], float]] = {
        f"FSDP2, {name}": functools.partial(fsdp, rows) for name, rows in ROWS.items()
    }
    return found | {"summed by hand": summed, "tensor parallelism": tensor_parallel}
