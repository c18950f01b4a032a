"""Two processes over gloo: what each case finds, as JSON.

In fp32 it is the worst error of a gradient against one process; in bf16 see
tests.integrations.mixed.

python -m tests.integrations.ranks FOLDER RANK
"""

from __future__ import annotations

import functools
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from gft_kernels import Head, gft, linear_policy_loss
from gft_kernels.integrations.hf import PolicyBatch, fuse_loss, split_head
from gft_kernels.parallel import VocabularyShard, gather_rows

from .models import V, untrained

RANKS = 2


def data() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(ids [4, 7], targets [4, 6], advantages [4, 6]); the last row is short, rank 1 has less."""
    g = torch.Generator().manual_seed(5)
    ids = torch.randint(3, V, (4, 7), generator=g)
    targets = ids[:, 1:].clone()
    targets[3, 2:] = -100
    return ids, targets, torch.randn(targets.shape, generator=g)


def masked_on_rank_one() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    ids, targets, advantages = data()
    targets[2:] = -100
    return ids, targets, advantages


def llama() -> nn.Module:
    return untrained("llama", num_hidden_layers=2, num_key_value_heads=2)


def tied() -> nn.Module:
    return untrained("qwen2-tied")


def lora() -> nn.Module:
    config = LoraConfig(target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    torch.manual_seed(0)
    return get_peft_model(llama(), config)


def lora_on_the_head() -> nn.Module:
    config = LoraConfig(target_modules=["lm_head"], init_lora_weights=False, task_type="CAUSAL_LM")
    torch.manual_seed(0)
    return get_peft_model(llama(), config)


def shard_root(model: nn.Module) -> nn.Module:
    for layer in model.model.layers:
        fully_shard(layer)
    return fully_shard(model)


def shard_base(model: nn.Module) -> nn.Module:
    shard_root(model.get_base_model())
    return model


def shard_head(model: nn.Module) -> nn.Module:
    fully_shard(model.lm_head)
    return shard_root(model)


def granite() -> nn.Module:
    return untrained("granite-divides", num_hidden_layers=2)


def shard_two_roots(model: nn.Module) -> nn.Module:
    """Backbone and head apart, the model itself not: what a vocabulary shard needs."""
    fully_shard(model.model)
    fully_shard(model.lm_head)
    return model


def prepare(model: nn.Module) -> nn.Module:
    return Accelerator(cpu=True).prepare(model)


def fsdp1(model: nn.Module, parts: tuple[str, ...] = ("model.layers.0", "model.layers.1"), **options) -> nn.Module:
    """The root, and each of the parts apart."""
    kinds = {type(model.get_submodule(part)) for part in parts}
    policy = ModuleWrapPolicy(kinds) if kinds else None
    return FullyShardedDataParallel(model, auto_wrap_policy=policy, device_id=torch.device("cpu"), **options)


def fsdp1_root(model: nn.Module) -> nn.Module:
    return fsdp1(model, (), use_orig_params=True)


def fsdp1_head(model: nn.Module) -> nn.Module:
    wrapped = fsdp1(model, ("model.layers.0", "lm_head"))
    assert isinstance(wrapped.module.lm_head, FullyShardedDataParallel)
    return wrapped


# name: (model, wrapper, when to fuse, data); "one reduction" is of both rows of a rank
CASES: dict[str, tuple[Callable, Callable, str, Callable]] = {
    "DDP": (llama, DistributedDataParallel, "before", data),
    "DDP, fused afterwards": (llama, DistributedDataParallel, "after", data),
    "DDP of adapters": (lora, DistributedDataParallel, "before", data),
    "DDP of LoRA on the head": (lora_on_the_head, DistributedDataParallel, "before", data),
    "DDP of a tied head": (tied, DistributedDataParallel, "before", data),
    "DDP, all masked on one rank": (llama, DistributedDataParallel, "before", masked_on_rank_one),
    "FSDP2": (llama, shard_root, "before", data),
    "FSDP2, fused afterwards": (llama, shard_root, "after", data),
    "FSDP2, the head apart": (llama, shard_head, "before", data),
    "FSDP2 of LoRA on the head": (lora_on_the_head, shard_base, "before", data),
    "FSDP2 of a tied head": (tied, shard_root, "before", data),
    "FSDP2, all masked on one rank": (llama, shard_root, "before", masked_on_rank_one),
    "accelerate": (llama, prepare, "before", data),
    "DDP, one reduction": (llama, DistributedDataParallel, "before", data),
    "FSDP2, one reduction": (llama, shard_root, "before", data),
    "FSDP1": (llama, fsdp1, "before", data),
    "FSDP1 of the root": (llama, fsdp1_root, "before", data),
    "FSDP1, the head apart": (llama, fsdp1_head, "before", data),
    "FSDP1 of a tied head": (tied, fsdp1_root, "before", data),
    "FSDP1, all masked on one rank": (llama, fsdp1, "before", masked_on_rank_one),
    "FSDP1, one reduction": (llama, fsdp1, "before", data),
}


@contextmanager
def held_back(model: nn.Module) -> Iterator[None]:
    """Gradients stay on their rank."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(False)
        yield
        model.set_requires_gradient_sync(True)
    else:
        with model.no_sync():
            yield


def backward(model: nn.Module, rows: slice, batch: tuple[torch.Tensor, ...], scale: float, once: bool = False) -> None:
    """One row at a time, as in gradient accumulation; weights count the tokens of all ranks."""
    ids, targets, advantages = batch
    weight = scale / (targets != -100).sum()
    order = range(*rows.indices(len(ids)))
    for i in order:
        row = slice(i, i + 1)
        weights = weight * torch.ones(targets[row].shape)
        given = PolicyBatch(targets[row], gft(0.03), advantages[row], token_weights=weights)
        with held_back(model) if once and i != order[-1] else nullcontext():
            model(input_ids=ids[row], policy_batch=given).loss.backward()


def gradients_of_flat(model: nn.Module) -> dict[str, torch.Tensor]:
    """What a step takes off the parameters, a step so large that nothing is left of themselves."""
    torch.optim.SGD(model.parameters(), lr=1e12).step()
    with FullyShardedDataParallel.summon_full_params(model):
        return {n.replace("_fsdp_wrapped_module.", ""): p.detach() / -1e12 for n, p in model.named_parameters()}


def backward_by_shard(model: nn.Module, head: Head, rows: slice, batch: tuple[torch.Tensor, ...]) -> None:
    """The same loss past the model's forward: FSDP2's part of the head stays where it is."""
    ids, targets, advantages = batch
    hidden = model.model(input_ids=ids[rows]).last_hidden_state[:, :-1].flatten(0, 1)
    hidden, every_target, every_advantage = gather_rows(hidden, targets[rows].flatten(), advantages[rows].flatten())
    weight = model.lm_head.weight
    assert isinstance(weight, DTensor)
    given = {"objective": gft(0.03), "head": replace(head, shard=VocabularyShard.of(weight))}
    linear_policy_loss(hidden, weight.to_local(), every_target, every_advantage, **given).loss.backward()


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    if isinstance(model, FullyShardedDataParallel):
        return gradients_of_flat(model)
    found = {}
    for name, p in model.named_parameters():
        if p.grad is not None:
            grad = p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad
            found[name.removeprefix("module.")] = grad.clone()
    return found


def worst_error(case: str, rank: int) -> float:
    """The largest error of a parameter's gradient, relative to its largest entry."""
    make, wrap, when, of = CASES[case]
    batch = of()
    single = fuse_loss(make())
    backward(single, slice(None), batch, 1.0)
    model = make()
    if when == "before":
        fuse_loss(model)
    model = wrap(model)
    assert case != "accelerate" or isinstance(model, DistributedDataParallel)
    if when == "after":
        fuse_loss(model)
    mine = slice(2 * rank, 2 * rank + 2)
    backward(model, mine, batch, float(RANKS), once="one reduction" in case)  # wrappers average over the ranks
    return worst(gradients(model), gradients(single))


def error_by_shard(rank: int) -> float:
    """One model with both: a step by the fused forward, then one by the shard of its head."""
    batch, own = data(), slice(2 * rank, 2 * rank + 2)
    single = fuse_loss(granite())
    backward(single, slice(None), batch, 1.0)
    model = granite()
    head = split_head(model).head  # its transforms, while the model is whole
    model = shard_two_roots(fuse_loss(model))
    backward(model, own, batch, float(RANKS))
    found = [worst(gradients(model), gradients(single))]
    model.zero_grad()
    backward_by_shard(model, head, own, batch)
    return max(*found, worst(gradients(model), gradients(single)))


def worst(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> float:
    assert want.keys() == got.keys(), want.keys() ^ got.keys()
    return max((got[n] - g).abs().max().item() / max(g.abs().max().item(), 1e-12) for n, g in want.items())


RUNS: dict[str, Callable[[int], float]] = {case: functools.partial(worst_error, case) for case in CASES}
RUNS["FSDP2, the head by its shard"] = error_by_shard


def main(folder: str, rank: str) -> None:
    from .mixed import MIXED, measured

    # What torchrun sets, for accelerate.
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": str(RANKS)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "0"}  # unused: the store is a file
    store = dist.FileStore(f"{folder}/store", RANKS)
    dist.init_process_group("gloo", store=store, rank=int(rank), world_size=RANKS)
    warnings.filterwarnings("ignore", category=FutureWarning)  # FSDP1 is deprecated
    found: dict[str, object] = {}
    for case, run in {**RUNS, **{case: functools.partial(measured, case) for case in MIXED}}.items():
        try:
            found[case] = run(int(rank))
        except Exception as error:  # the other rank is in the same case
            found[case] = f"{type(error).__name__}: {error}"
    Path(folder, f"rank{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
