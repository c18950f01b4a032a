"""The loop: prompts -> groups -> rewards -> fused loss on hidden states -> optimiser step."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator, Sequence

import torch

from gft_kernels import linear_policy_loss, token_weights

from .checkpoint import save_checkpoint
from .config import TrainConfig
from .data.files import Example
from .evaluate import Accuracy, evaluate
from .groups import Batch, Member, check_examples, fit_prompts, make_batch
from .metrics import Mean, MetricsLog, peak_memory_mib
from .policy import Policy
from .report import Progress
from .rewards.pool import RewardPool

IGNORE = -100


def train(
    policy: Policy,
    examples: Sequence[Example],
    held_out: Sequence[Example],
    config: TrainConfig,
    rewards: RewardPool,
    log: MetricsLog,
    progress: Progress,
) -> tuple[Accuracy | None, Accuracy | None]:
    """Train `policy` in place for config.steps optimiser steps; returns the held-out accuracy
    before and after.

    Raises:
        ValueError: no usable prompt. RuntimeError: the gradient stayed non-finite, or a step could
            not be scored at all.
    """
    examples, too_long = fit_prompts(policy, examples, config.sampling.max_prompt_tokens)
    if not examples:
        raise ValueError(
            f"none of {too_long} prompts has 1 to {config.sampling.max_prompt_tokens} tokens (--max-prompt-tokens)."
        )
    if too_long:
        progress.say(
            f"{too_long} prompts are empty or longer than {config.sampling.max_prompt_tokens} tokens and were left out"
        )
    for note in check_examples(examples, config):
        progress.say(note)
    torch.manual_seed(config.seed)
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=config.optim.lr, weight_decay=config.optim.weight_decay)
    batches = prompt_batches(examples, config.prompts_per_step, config.seed)
    before = _evaluate(policy, held_out, config, rewards, log, step=0)
    step = bad_steps = 0
    try:
        for step in range(1, config.steps + 1):
            row = train_step(policy, optimizer, next(batches), config, rewards, step)
            log.write(row)
            progress.step(row)
            if step == 1 and row.get("reward_expert") == 0:
                progress.say(
                    f"every expert response of the first step scored 0: is {config.reward_name()} the reward for "
                    "this data?"
                )
            bad_steps = bad_steps + 1 if row["skipped"] else 0
            if bad_steps >= config.optim.bad_steps:
                raise RuntimeError(
                    f"the gradient norm was {row['grad_norm']} for {bad_steps} steps in a row, up to step {step}: "
                    "lower the lr."
                )
            if config.evaluate.eval_every and step % config.evaluate.eval_every == 0 and step < config.steps:
                _evaluate(policy, held_out, config, rewards, log, step)
            if config.save_every and step % config.save_every == 0 and step < config.steps:
                save_checkpoint(policy, config.out / f"checkpoint-{step}")
    except BaseException:
        if step > 1:
            progress.say(
                f"stopped in step {step}; the weights so far: {save_checkpoint(policy, config.out / 'stopped')}"
            )
        raise
    save_checkpoint(policy, config.out / "model")
    after = _evaluate(policy, held_out, config, rewards, log, config.steps) if config.steps else before
    return before, after


def train_step(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    examples: Sequence[Example],
    config: TrainConfig,
    rewards: RewardPool,
    step: int,
) -> dict:
    """One step: groups, rewards, gradients, update; returns the step's numbers."""
    start = time.perf_counter()
    batch = make_batch(policy, examples, config, rewards)
    rollout = time.perf_counter() - start
    numbers = accumulate_gradients(policy, batch, config)
    update = optimizer_step(policy, optimizer, config, step, learn=numbers["active_sequences"] > 0)
    seconds = time.perf_counter() - start
    tokens = sum(len(m.response) for m in batch.members)
    speed = {
        "seconds": seconds,
        "seconds_rollout": rollout,
        "tokens_per_second": tokens / seconds,
        "peak_memory_mib": peak_memory_mib(),
    }
    return {"step": step, **numbers, **update, **reward_metrics(batch), **speed}


def optimizer_step(
    policy: Policy, optimizer: torch.optim.Optimizer, config: TrainConfig, step: int, learn: bool
) -> dict[str, float | bool]:
    """Clip and step. A gradient that is not finite is dropped, not clipped: clipping would spread
    its NaN to every weight.
    """
    for group in optimizer.param_groups:
        group["lr"] = config.optim.lr * min(1.0, step / max(config.optim.warmup, 1))
    norm = torch.nn.utils.get_total_norm([p.grad for p in policy.model.parameters() if p.grad is not None]).item()
    finite = math.isfinite(norm)
    if finite and learn:
        torch.nn.utils.clip_grads_with_norm_(policy.model.parameters(), config.optim.max_grad_norm, torch.tensor(norm))
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {"grad_norm": norm, "skipped": not finite, "lr": optimizer.param_groups[0]["lr"]}


def prompt_batches(examples: Sequence[Example], size: int, seed: int) -> Iterator[list[Example]]:
    """Endless batches of prompts, reshuffled every epoch; a batch never runs short."""
    rng, queue = random.Random(seed), []
    while True:
        while len(queue) < size:
            queue.extend(rng.sample(list(examples), len(examples)))
        yield queue[:size]
        queue = queue[size:]


def accumulate_gradients(policy: Policy, batch: Batch, config: TrainConfig) -> dict[str, float]:
    """Forward and backward over the step's micro-batches; the gradients are those of the whole
    batch at once.

    A sequence whose advantage is 0 carries no gradient: it is left out of the backbone too, and
    stays in the denominator.
    """
    objective = config.objective_function()
    skip = objective.zero_at_zero_advantage
    active = [m for m in batch.members if not skip or m.advantage != 0]
    counted = [m for m in batch.members if m.spread or m.advantage != 0 or config.group.count_flat]
    longest = max(config.sampling.max_given_tokens, config.sampling.max_new_tokens)
    counts = {"num_tokens": sum(len(m.response) for m in counted), "num_sequences": len(counted), "max_length": longest}
    policy.model.train()
    active.sort(key=lambda m: len(m.prompt) + len(m.response))
    means, loss = Mean(), 0.0
    for start in range(0, len(active), config.optim.micro_batch):
        members = active[start : start + config.optim.micro_batch]
        tokens, mask, targets, sequence = collate(members, policy.tokenizer.pad_token_id, policy.device)
        learn = targets != IGNORE
        hidden = policy.hidden(tokens, mask)[:, :-1][learn]  # [N, D], response positions only
        sequence_ids = sequence[learn]
        advantages = torch.tensor([m.advantage for m in members], device=policy.device)[sequence_ids]
        weights = token_weights(
            config.reduction, torch.ones_like(sequence_ids, dtype=torch.bool), sequence_ids, **counts
        )
        result = linear_policy_loss(
            *policy.head_operands(hidden),
            targets[learn],
            advantages,
            objective=objective,
            token_weights=weights,
            head=policy.head,
            backend=config.head_backend(),
        )
        result.loss.backward()
        loss += result.loss.item()
        stats = {name: value.item() for name, value in result.stats.items()}
        means.add(stats.pop("active_tokens"), **{k: v for k, v in stats.items() if k != "tokens"})
    return {"loss": loss, "active_sequences": len(active), "sequences": len(batch.members), **means.result()}


def collate(members: Sequence[Member], pad: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    """(tokens [B, T], attention mask [B, T], targets [B, T-1], sequence ids [B, T-1]); targets are
    IGNORE outside responses.

    Padding is masked by length: a padding token that is also the end token is never trained on by
    accident.
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


def reward_metrics(batch: Batch) -> dict[str, float]:
    """Mean reward of every source, and what can go wrong with responses."""
    rewards, lengths = Mean(), Mean()
    for m in batch.members:
        lengths.add(1, truncated=float(m.truncated), response_tokens=len(m.response))
        if m.reward is not None:
            rewards.add(1, **{"reward": m.reward, f"reward_{m.source}": m.reward})
    return {
        **rewards.result(),
        **lengths.result(),
        "flat_groups": batch.flat_groups,
        "reward_errors": batch.reward_errors,
    }


def _evaluate(
    policy: Policy, held_out: Sequence[Example], config: TrainConfig, rewards: RewardPool, log: MetricsLog, step: int
) -> Accuracy | None:
    if not held_out:
        return None
    accuracy = evaluate(
        policy,
        held_out,
        rewards,
        samples=config.evaluate.eval_samples,
        max_new_tokens=config.sampling.max_new_tokens,
        batch=config.sampling.batch,
    )
    log.write(
        {"step": step, "eval_greedy": accuracy.greedy, "eval_sampled": accuracy.sampled, "eval_errors": accuracy.errors}
    )
    return accuracy
