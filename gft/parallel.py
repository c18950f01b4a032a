"""The model of several processes: DDP or FSDP2, through the loss in the model's own forward.

Both average gradients over the ranks, so that a micro-batch counts `world_size` times where its
weights are 1 / (the tokens of all ranks).

DDP keeps a whole model on every rank, and reduces the gradients of a step's last micro-batch with
those of the others. FSDP2 keeps a share of weights, gradients and moments. It gathers the weights
layer by layer, and reduces gradients in every micro-batch, so that no rank holds whole ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from .distributed import world_size
from .policy import Policy


def spread(policy: Policy, kind: str | None) -> None:
    """Make the policy's model that of all ranks, "ddp" (or None) or "fsdp". One process: nothing.

    Call it before the optimiser is made: FSDP2 puts other parameters into the model.
    """
    if world_size() == 1:
        return
    if kind == "fsdp":
        _shard(policy)
    else:
        # Gradients lie in the buckets that are reduced: there is no second copy of them.
        policy.wrapped = DistributedDataParallel(policy.model, gradient_as_bucket_view=True)


def _shard(policy: Policy) -> None:
    """Layers apart, and the rest with the root: a head that is tied has one place then."""
    mesh = init_device_mesh(policy.device.type, (world_size(),))
    half = policy.compute != torch.float32
    # Weights travel as what they are multiplied as. Shares, gradients and moments stay in fp32.
    rounding = MixedPrecisionPolicy(policy.compute, torch.float32) if half else MixedPrecisionPolicy()
    layers = set(policy.model._no_split_modules or ())  # their class names
    for module in [m for m in policy.model.modules() if type(m).__name__ in layers]:
        fully_shard(module, mesh=mesh, mp_policy=rounding)
    fully_shard(policy.model, mesh=mesh, mp_policy=rounding)


def is_sharded(model: nn.Module) -> bool:
    """Whether a rank holds a part of the weights only."""
    return isinstance(model, FSDPModule)


@contextmanager
def whole_weights(model: nn.Module) -> Iterator[None]:
    """All weights on every rank, to sample with: within the block FSDP2 exchanges nothing.

    A forward pass of FSDP2 is one of all ranks. Generation would have to make as many of them on
    each, those that have ended too, and would gather all weights for every token. Here they are
    gathered once, as what they are multiplied as: in bf16 they take 2 bytes a weight, for as long
    as samples are drawn. Ranks may then draw as many as they like.
    """
    if not isinstance(model, FSDPModule):
        yield
        return
    parts = [m for m in cast(nn.Module, model).modules() if isinstance(m, FSDPModule)]
    for part in parts:
        part.unshard()
    model.set_reshard_after_forward(False)
    try:
        yield
    finally:
        model.set_reshard_after_forward(True)
        model.set_reshard_after_forward(False, recurse=False)  # the root's: its backward begins at once
        for part in parts:
            part.reshard()


@contextmanager
def reducing(policy: Policy, last: bool) -> Iterator[None]:
    """DDP reduces in the `last` forward and backward pass of a step only."""
    wrapped = policy.wrapped
    with nullcontext() if last or wrapped is None else wrapped.no_sync():
        yield


def whole_state(model: nn.Module) -> dict[str, Tensor] | None:
    """Every weight of a sharded model in main memory, on rank 0; None where the model is whole.

    A weight with two names, as a tied head has, comes by the first: gathered, it would be two.
    """
    if not is_sharded(model):
        return None
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = cast(dict[str, Tensor], get_model_state_dict(model, options=options))
    every, first = (dict(model.named_parameters(remove_duplicate=once)).keys() for once in (False, True))
    return {name: weight for name, weight in state.items() if name not in every - first}


def whole(tensor: Tensor) -> Tensor:
    """A tensor of which every rank may hold a part, on all of them."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
