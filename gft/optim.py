"""AdamW on what is trained: its groups, its learning rate, and an update."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .config import TrainConfig
from .parallel import whole
from .parts import OptimConfig
from .policy import Policy


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over the parameters that are trained, which decay if they are matrices.

    Decay holds back products of weights and activations. A scale of a norm or a bias is in none,
    and pulled to 0 it would only change what the layer computes. Embeddings and the head decay, as
    in transformers' Trainer. The groups have the names of their parameters, as `param_names`.
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [(name, p) for name, p in trained if decays(name, p) == decay], "weight_decay": amount}
        for decay, amount in ((True, config.weight_decay), (False, 0.0))
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.lr,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
    )


def decays(name: str, parameter: Tensor) -> bool:
    """Whether a parameter is a matrix. Experts stack their biases, which are none all the same."""
    return parameter.ndim >= 2 and not name.endswith("bias")


def names(optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of its parameters, in the order that its state is counted in: group by group."""
    return [name for group in optimizer.param_groups for name in group["param_names"]]


def learning_rate(config: OptimConfig, step: int, steps: int) -> float:
    """The rate of a step; the first is 1 and the last `steps`.

    It rises to `lr` in `warmup` steps, and falls to `min_lr` from there. The step after the last
    one would have `min_lr`, so that no update is made with a rate of 0. It is a function of the
    step's number alone. A scheduler would be one more state to keep, and PyTorch's warns if the
    first gradient was dropped.
    """
    top = max(config.warmup, 1)
    if step < top:
        return config.lr * (step / top)
    if config.schedule == "constant":
        return config.lr
    done = (step - top) / (steps + 1 - top)
    left = 1 - done if config.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return config.min_lr + left * (config.lr - config.min_lr)


def optimizer_step(
    policy: Policy, optimizer: torch.optim.Optimizer, config: TrainConfig, step: int, learn: bool
) -> dict[str, float | bool]:
    """Set the learning rate, clip, step, and clear the gradients."""
    rate = learning_rate(config.optim, step, config.steps)
    for group in optimizer.param_groups:
        group["lr"] = rate
    # The norm is taken before clipping. After it, every large gradient would be logged as
    # max_grad_norm, and a run about to diverge would look like any other.
    gradients = [p.grad for p in policy.model.parameters() if p.grad is not None]
    norm = whole(torch.nn.utils.get_total_norm(gradients)).item()
    # A gradient that is not finite is dropped. Clipping multiplies by max_grad_norm / norm: one NaN
    # would spread to all weights, and stay in Adam's moments for good.
    finite = math.isfinite(norm)
    if finite and learn:
        torch.nn.utils.clip_grads_with_norm_(policy.model.parameters(), config.optim.max_grad_norm, torch.tensor(norm))
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)  # to None: no memory is held for gradients while sampling
    return {"grad_norm": norm, "skipped": not finite, "lr": rate}
