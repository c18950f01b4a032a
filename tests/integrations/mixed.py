"""bf16 under data-parallel wrappers, two processes: what is rounded, and what is not."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecision, MixedPrecisionPolicy, fully_shard

from gft_kernels import gft, grpo
from gft_kernels.integrations import fuse
from gft_kernels.integrations.hf import PolicyBatch, fuse_loss

from .ranks import RANKS, data, fsdp1, gradients, llama

POLICY = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)


def shard(model: nn.Module) -> nn.Module:
    for layer in model.model.layers:
        fully_shard(layer, mp_policy=POLICY)
    return fully_shard(model, mp_policy=POLICY)


def prepare(model: nn.Module) -> nn.Module:
    AcceleratorState._reset_state()  # one precision a process, says accelerate
    return Accelerator(cpu=True, mixed_precision="bf16").prepare(model)


MIXED: dict[str, Callable] = {
    "FSDP2 in bf16": shard,
    "FSDP1 in bf16": partial(fsdp1, mixed_precision=MixedPrecision(torch.bfloat16, torch.float32)),
    "accelerate in bf16": prepare,
}


def steps(model: nn.Module, rows: range, loss_of: Callable) -> dict[str, Tensor]:
    """Gradients of a loss that `loss_of` takes from the model, a row at a time."""
    ids, targets, advantages = data()
    weight = (RANKS if len(rows) < len(ids) else 1) / (targets != -100).sum()
    for i in rows:
        row = slice(i, i + 1)
        loss_of(model, ids[row], targets[row], advantages[row], weight * torch.ones(targets[row].shape)).backward()
    return gradients(model)


def fused(model: nn.Module, ids: Tensor, targets: Tensor, advantages: Tensor, weights: Tensor) -> Tensor:
    return model(input_ids=ids, policy_batch=PolicyBatch(targets, gft(0.03), advantages, token_weights=weights)).loss


def eager(model: nn.Module, ids: Tensor, targets: Tensor, advantages: Tensor, weights: Tensor) -> Tensor:
    """The formula on the model's own logits, log-softmax in fp32 as trainers take it."""
    z = model(input_ids=ids).logits[:, :-1].float()
    lp = z.log_softmax(-1).gather(2, targets.clamp(min=0)[..., None]).squeeze(2)
    return (weights * gft(0.03)(lp, advantages=advantages))[targets != -100].sum()


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The largest difference of a parameter's gradients, relative to its largest entry."""
    assert a.keys() == b.keys()
    return max(((a[n] - b[n]).abs().max() / b[n].abs().max()).item() for n in b)


def what_the_head_rounds(model: nn.Module, rank: int) -> dict[str, float]:
    """Errors of log-probs of given bf16 operands, and of the ratio of a policy to itself."""
    ids, targets, advantages = data()
    rows = slice(2 * rank, 2 * rank + 2)
    ids, targets, advantages = ids[rows], targets[rows], advantages[rows]
    seen, compute = [], fuse._compute

    def recorded(hidden, weight, *rest):
        seen.append((hidden.detach().clone(), weight.detach().clone()))
        return compute(hidden, weight, *rest)

    fuse._compute = recorded
    try:
        with torch.no_grad():
            old = model(input_ids=ids, policy_batch=PolicyBatch(targets)).logprobs
            weights = 0.1 + torch.arange(targets.numel()).view(targets.shape) / 30
            batch = PolicyBatch(targets, grpo(), advantages, token_weights=weights, old_logprobs=old)
            loss = model(input_ids=ids, policy_batch=batch).loss.item()
    finally:
        fuse._compute = compute
    hidden, weight = seen[0]
    assert {hidden.dtype, weight.dtype} == {torch.bfloat16}
    valid = targets != -100
    logits = (hidden.double() @ weight.double().T).view(*ids.shape, -1)[:, :-1]
    exact = logits.log_softmax(-1).gather(2, targets.clamp(min=0)[..., None]).squeeze(2)
    rounded = logits.bfloat16().double().log_softmax(-1).gather(2, targets.clamp(min=0)[..., None]).squeeze(2)
    return {
        "log-probs": (old - exact)[valid].abs().max().item(),
        "log-probs of bf16 logits": (rounded - exact)[valid].abs().max().item(),
        "ratio to itself": abs(loss + (weights * advantages)[valid].sum().item()),
    }


def measured(case: str, rank: int) -> dict[str, float]:
    """Distances of the gradients, each of the three from another, and what the head rounds."""
    wrap = MIXED[case]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mine = range(2 * rank, 2 * rank + 2)
        single = steps(fuse_loss(llama()), range(4), fused)
        model = wrap(fuse_loss(llama()))
        rounding = what_the_head_rounds(model, rank)
        got, own = steps(model, mine, fused), steps(wrap(llama()), mine, eager)
    return {
        "fused to eager": distance(got, own),
        "fused to fp32": distance(got, single),
        "eager to fp32": distance(own, single),
        **rounding,
    }
