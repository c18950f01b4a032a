"""Configs, batches and an actor of verl, small and on a CPU."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from tensordict import TensorDict
from torch import Tensor
from verl.plugin.platform import set_platform
from verl.plugin.platform.platform_cuda import PlatformCUDA
from verl.trainer.config import CheckpointConfig
from verl.utils import tensordict_utils as tu
from verl.workers.config import (
    FSDPActorConfig,
    FSDPEngineConfig,
    FSDPOptimizerConfig,
    HFModelConfig,
    PolicyLossConfig,
)
from verl.workers.utils.padding import left_right_2_no_padding

MODES = ("token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm")
# What verl's actor knows of the whole step: nothing, or the counts over two ranks.
GLOBAL = ({}, {"dp_size": 2, "batch_num_tokens": 41, "global_batch_size": 9, "loss_scale_factor": 6})
LENGTHS = torch.tensor([5, 4, 3, 0, 5, 1])


def actor_config(**changes: Any) -> FSDPActorConfig:
    return FSDPActorConfig(**{"rollout_n": 4, "ppo_micro_batch_size_per_gpu": 2, **changes})


def arguments(seed: int = 0) -> dict[str, Tensor]:
    """What verl passes to a policy loss, (bs, L) each, with ratios on both sides of every clip."""
    g = torch.Generator().manual_seed(seed)
    mask = torch.arange(5) < LENGTHS[:, None]
    log_prob = -torch.rand(mask.shape, generator=g) * 3
    return {
        "old_log_prob": log_prob - torch.randn(mask.shape, generator=g),
        "log_prob": log_prob,
        "advantages": torch.randn(mask.shape, generator=g),
        "response_mask": mask,
    }


class CpuPlatform(PlatformCUDA):
    """verl's CUDA platform with a CPU in its place: verl has none of its own."""

    device_name = property(lambda self: "cpu")
    vendor_name = property(lambda self: "cpu")
    device_module = property(
        lambda self: SimpleNamespace(is_available=lambda: True, mem_get_info=lambda: (1, 1), **CPU)
    )

    def current_device(self) -> Any:
        return torch.device("cpu")

    def communication_backend_name(self) -> str:
        return "gloo"


CPU = {
    name: lambda *_, **__: 0
    for name in ("empty_cache", "synchronize", "memory_allocated", "memory_reserved", "max_memory_allocated")
}


@contextmanager
def process_group(rank: int = 0, ranks: int = 1, store: Any = None):
    """This process as one of verl's workers."""
    set_platform(CpuPlatform())
    dist.init_process_group("gloo", store=store or dist.HashStore(), rank=rank, world_size=ranks)
    try:
        yield
    finally:
        with suppress(Exception):
            dist.destroy_process_group()


def engine_of(
    folder: str, fused: bool, *, remove_padding: bool = False, strategy: str = "fsdp2", **changes: Any
) -> Any:
    """verl's FSDP engine on the model in a folder, in fp32."""
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead  # it asks for the platform

    model = HFModelConfig(
        path=folder,
        load_tokenizer=False,
        override_config={"attn_implementation": "eager"},
        use_remove_padding=remove_padding,
        use_fused_kernels=fused,
        fused_kernel_options={"impl_backend": "torch"},
        **{"enable_gradient_checkpointing": False, **changes},
    )
    plain = dict.fromkeys(("param_dtype", "reduce_dtype", "buffer_dtype"), "fp32")
    config = FSDPEngineConfig(strategy=strategy, use_torch_compile=False, mixed_precision=plain)
    # Steps of the gradient itself: Adam's would blow up the rounding of small ones.
    optimizer = FSDPOptimizerConfig(optimizer="SGD", lr=1.0, total_training_steps=10, clip_grad=1e9, weight_decay=0.0)
    engine = FSDPEngineWithLMHead(model, config, optimizer, CheckpointConfig())
    engine.initialize()
    return engine


def rollout(vocabulary: int, temperature: float, fused: bool, rows: slice = slice(None), micro: int = 2) -> TensorDict:
    """A batch as verl's trainer hands it to an actor: prompts of three tokens, ragged responses."""
    g = torch.Generator().manual_seed(7)
    lengths = torch.tensor([5, 4, 3, 2, 5, 5, 1, 4])
    count, width = len(lengths), 5
    response_mask = (torch.arange(width) < lengths[:, None]).long()
    prompts = torch.randint(3, vocabulary, (count, 3), generator=g)
    responses = torch.randint(3, vocabulary, (count, width), generator=g) * response_mask
    attention_mask = torch.cat([torch.ones_like(prompts), response_mask], 1)
    batch = {
        "prompts": prompts,
        "responses": responses,
        "input_ids": torch.cat([prompts, responses], 1),
        "attention_mask": attention_mask,
        "position_ids": (attention_mask.cumsum(1) - 1).clamp(min=0),
        "response_mask": response_mask,
        "old_log_probs": -3 - torch.rand(count, width, generator=g),
        "advantages": torch.randn(count, 1, generator=g).expand(count, width),
    }
    chosen = {name: value[rows].contiguous() for name, value in batch.items()}
    data = left_right_2_no_padding(TensorDict(chosen, batch_size=len(chosen["prompts"])))
    tu.assign_non_tensor(
        data,
        temperature=temperature,
        global_batch_size=count,
        use_dynamic_bsz=False,
        micro_batch_size_per_gpu=micro,
        use_fused_kernels=fused,
        use_remove_padding=False,
        calculate_entropy=True,
    )
    return data


def update(engine: Any, data: TensorDict, loss_mode: str, **changes: Any) -> dict[str, Any]:
    """One update of the actor, by verl's own ppo_loss: loss, grad_norm, and the metrics."""
    from verl.workers.utils.losses import ppo_loss

    config = actor_config(policy_loss=PolicyLossConfig(loss_mode=loss_mode), **changes)
    with engine.train_mode():
        found = engine.train_batch(data, partial(ppo_loss, config))
    metrics = {name: getattr(value, "aggregate", lambda v=value: v)() for name, value in found["metrics"].items()}
    return {"loss": sum(found["loss"]), **metrics}


def parameters(engine: Any) -> dict[str, Tensor]:
    state = engine.module.state_dict()
    return {name: (p.full_tensor() if hasattr(p, "full_tensor") else p).clone() for name, p in state.items()}
