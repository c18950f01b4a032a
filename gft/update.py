"""From a batch of scored responses to an update: gradients in micro-batches, clipping, AdamW."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from gft_kernels import token_weights
from gft_kernels.integrations.hf import PolicyBatch

from .config import TrainConfig
from .groups import Batch, Member
from .metrics import Mean
from .policy import Policy
from .stop import check

IGNORE = -100  # the target of a position that is not trained on


def accumulate_gradients(policy: Policy, batch: Batch, config: TrainConfig) -> dict[str, float]:
    """Forward and backward passes over the step's micro-batches; gradients add up in `.grad`.

    They are the gradients of the whole batch at once, up to rounding, whatever the micro-batch.
    """
    objective = config.objective_function()
    # With advantage 0, a response has loss 0 and gradient 0 at every token. The head would skip it
    # anyhow, but most of the time goes into the backbone, so it is left out there too.
    skip = objective.zero_at_zero_advantage
    active = [m for m in batch.members if not skip or m.advantage != 0]
    counts = step_counts(batch, config)
    # A micro-batch is padded to its longest member. With like lengths side by side little is
    # padding, and the order of a sum does not change it.
    active.sort(key=lambda m: len(m.prompt) + len(m.response))
    policy.model.train()  # models are loaded in eval mode; the difference is dropout, if there is any
    means, loss, aux_loss = Mean(), 0.0, 0.0
    for start in range(0, len(active), config.optim.micro_batch):
        check()  # the gradients so far are lost, and made again from the same rollouts
        members = active[start : start + config.optim.micro_batch]
        tokens, mask, targets, sequence = collate(members, policy.tokenizer.pad_token_id, policy.device)
        weights = token_weights(config.reduction, (targets != IGNORE).flatten(), sequence.flatten(), **counts)
        # Advantages come with the members: a micro-batch may hold a part of a group, whose mean and
        # std are not those of the group. Masked positions, such as prompts, cost the head nothing:
        # with V in the tens of thousands a row of it costs as much as several layers.
        result = policy.loss(
            tokens,
            mask,
            PolicyBatch(
                targets,
                objective,
                torch.tensor([m.advantage for m in members], device=policy.device),
                token_weights=weights.view(targets.shape),
                backend=config.head_backend(),
            ),
        )
        total = result.loss
        if result.aux_loss is not None:
            # Router balancing of mixtures of experts. It is a mean over the tokens of a forward
            # pass, so over the step it is the mean of the micro-batches, each by its share.
            share = len(members) / len(active) * result.aux_loss
            total, aux_loss = total + share, aux_loss + share.item()
        total.backward()
        # Read after backward() and not before: .item() waits until the device is done, and the
        # backward pass should be queued by then. The first one waits, the others find it idle.
        loss += result.loss.item()
        stats = {name: value.item() for name, value in result.stats.items()}
        means.add(stats.pop("active_tokens"), **{k: v for k, v in stats.items() if k != "tokens"})
    balancing = {"aux_loss": aux_loss} if aux_loss else {}
    return {
        "loss": loss,
        **balancing,
        "active_sequences": len(active),
        "sequences": len(batch.members),
        **means.result(),
    }


def step_counts(batch: Batch, config: TrainConfig) -> dict[str, int]:
    """The denominators of the reductions.

    They are those of the whole step, which a micro-batch does not see. With counts of its own, a
    micro-batch of short responses would weigh as much as one of long responses.
    """
    # Members that are not trained on stay in the denominator. A mean over the active tokens alone
    # would pull harder at the few groups that still differ, the more so the better the policy is.
    flat: set[int] = set() if config.group.count_flat else batch.flat_groups
    counted = [m for m in batch.members if m.group not in flat]
    return {
        "num_tokens": sum(len(m.response) for m in counted),
        "num_sequences": len(counted),
        # A constant of the run, so that a step of long responses is not divided by more.
        "max_length": max(config.sampling.max_given_tokens, config.sampling.max_new_tokens),
    }


def collate(members: Sequence[Member], pad: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    """(tokens [B, T], attention mask [B, T], targets [B, T-1], sequence ids [B, T-1]).

    Column t of the targets is the token at t + 1, which the hidden state at t predicts. It is
    IGNORE outside responses. What is padding is decided by length and never by the token's value:
    where a model pads with its end token, comparing values would mask the end of every response,
    and the policy would not learn to stop.
    """
    width = max(len(m.prompt) + len(m.response) for m in members)
    tokens = torch.full((len(members), width), pad)
    mask = torch.zeros_like(tokens)
    targets = torch.full((len(members), width), IGNORE)
    for row, m in enumerate(members):
        length = len(m.prompt) + len(m.response)
        tokens[row, :length] = torch.tensor(m.prompt + m.response)
        mask[row, :length] = 1
        targets[row, len(m.prompt) : length] = tokens[row, len(m.prompt) : length]
    sequence = torch.arange(len(members))[:, None].expand(-1, width - 1)
    return tokens.to(device), mask.to(device), targets[:, 1:].to(device), sequence.to(device)


def optimizer_step(
    policy: Policy, optimizer: torch.optim.Optimizer, config: TrainConfig, step: int, learn: bool
) -> dict[str, float | bool]:
    """Set the learning rate, clip, step, and clear the gradients."""
    # Warm-up by hand: the rate is a function of the step's number and nothing else. A scheduler
    # would be one more state to keep, and PyTorch's warns if the first gradient was dropped.
    for group in optimizer.param_groups:
        group["lr"] = config.optim.lr * min(1.0, step / max(config.optim.warmup, 1))
    # The norm is taken before clipping. After it, every large gradient would be logged as
    # max_grad_norm, and a run about to diverge would look like any other.
    norm = torch.nn.utils.get_total_norm([p.grad for p in policy.model.parameters() if p.grad is not None]).item()
    # A gradient that is not finite is dropped. Clipping multiplies by max_grad_norm / norm: one NaN
    # would spread to all weights, and stay in Adam's moments for good.
    finite = math.isfinite(norm)
    if finite and learn:
        torch.nn.utils.clip_grads_with_norm_(policy.model.parameters(), config.optim.max_grad_norm, torch.tensor(norm))
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)  # to None: no memory is held for gradients while sampling
    return {"grad_norm": norm, "skipped": not finite, "lr": optimizer.param_groups[0]["lr"]}


def reward_metrics(batch: Batch) -> dict[str, float]:
    """Mean reward of every source and of every term of a sum, and what can go wrong with responses."""
    rewards, lengths = Mean(), Mean()
    for m in batch.members:
        lengths.add(1, truncated=float(m.truncated), response_tokens=len(m.response))
        if m.reward is not None:
            parts = {f"reward/{name}": value for name, value in m.reward_parts.items()}
            rewards.add(1, **{"reward": m.reward, f"reward_{m.source}": m.reward, **parts})
    return {
        **rewards.result(),
        **lengths.result(),
        "flat_groups": len(batch.flat_groups) / len({m.group for m in batch.members}),
        "reward_errors": batch.reward_errors,
    }
