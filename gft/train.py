"""The training loop of Group Fine-Tuning (arXiv:2604.14258).

A step takes a few prompts. Every prompt has a group of responses: those of experts and teachers
from the data, and samples of the policy itself. Response k of a group has the reward R_k, and the
policy gives its token t the probability p_t.

    A_k    = (R_k - mean(R)) / (std(R) + eps)    advantage: how much better than its own group
    C(p)   = p if p < tau else 1                 rectification: undoes the 1 / p in d log p / dp
    loss_t = -A_k C(p_t) log p_t                 no gradient runs through A and C
    loss   = sum_t w_t loss_t                    "token-mean": w_t = 1 / tokens of the step

In the code R_k is `Member.reward`. A_k is `Member.advantage`, which groups.py takes from
`group_advantages`. C and loss_t are the objective `gft(config.tau)`; another objective changes
loss_t and nothing else. w_t comes from `token_weights`. The model computes the loss in
its own forward (`fuse_loss`), from hidden states and without the logits of all tokens.

The functions stand in the order of a step. Between train_step and accumulate_gradients, make_batch
in groups.py samples and scores the responses.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator, Sequence

import torch

from gft_kernels import token_weights
from gft_kernels.integrations.hf import PolicyBatch

from .checkpoint import check_space, save_checkpoint
from .config import TrainConfig
from .data.files import Example
from .evaluate import Accuracy, evaluate
from .groups import Batch, Member, make_batch
from .metrics import Mean, MetricsLog, peak_memory_mib
from .policy import Policy
from .report import Progress
from .rewards.pool import RewardPool
from .stop import undisturbed
from .usable import usable_examples, usable_held_out

IGNORE = -100  # the target of a position that is not trained on


def train(
    policy: Policy,
    examples: Sequence[Example],
    held_out: Sequence[Example],
    config: TrainConfig,
    rewards: RewardPool,
    log: MetricsLog,
    progress: Progress,
) -> tuple[Accuracy | None, Accuracy | None]:
    """Train `policy` in place; returns the held-out accuracy before and after.

    Raises:
        ValueError: what `usable_examples` and `usable_held_out` refuse.
        RuntimeError: the gradient stayed non-finite, or no response of a step could be scored.
    """
    examples = usable_examples(policy, examples, config, progress.say)
    held_out = usable_held_out(policy, held_out, config.sampling.max_new_tokens, config.max_bad_fraction)
    check_space(policy, config.out, len(config.saved_steps()) + 1)
    log.open()  # only now: an older file of that name goes when nothing more can be refused
    # Seeded here and not earlier: whatever made the model may have drawn random numbers.
    torch.manual_seed(config.seed)
    # Parameters and Adam's state are fp32, whatever the model computes in. Near 0.02, a usual size
    # of a weight, bf16 numbers are 1e-4 apart: an update of lr = 1e-6 would be rounded away.
    # Norms and biases decay like the rest. A step shrinks a weight by lr * weight_decay, 1e-8 by
    # default, so that sparing some of them would change nothing.
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
                # Experts are right. If none of them scores, the reward reads another answer format.
                progress.say(
                    f"every expert response of the first step scored 0: is {config.reward_name()} the reward for "
                    "this data?"
                )
            # One bad gradient costs one step. Several in a row come from the weights, which a step
            # that is skipped does not change: the run would go on to its end without learning.
            bad_steps = bad_steps + 1 if row["skipped"] else 0
            if bad_steps >= config.optim.bad_steps:
                raise RuntimeError(
                    f"the gradient norm was {row['grad_norm']} for {bad_steps} steps in a row, up to step {step}: "
                    f"lower --lr, which is {config.optim.lr}."
                )
            if config.evaluate.eval_every and step % config.evaluate.eval_every == 0 and step < config.steps:
                _evaluate(policy, held_out, config, rewards, log, step)
            if step in config.saved_steps():
                save_checkpoint(policy, config.out / f"checkpoint-{step}")
    except BaseException:
        # Ctrl-C and SIGTERM come by here as well, and should not cost hours of training. Every
        # update is whole: see optimizer_step.
        if step > 1:  # in step 1 there is at most one update to lose
            progress.say(
                f"stopped in step {step}; the weights so far: {save_checkpoint(policy, config.out / 'stopped')}"
            )
        raise
    # Saved before the last evaluation, which may be long, may fail or may be interrupted.
    save_checkpoint(policy, config.out / "model")
    after = _evaluate(policy, held_out, config, rewards, log, config.steps) if config.steps else before
    return before, after


def prompt_batches(examples: Sequence[Example], size: int, seed: int) -> Iterator[list[Example]]:
    """Endless batches of `size` prompts, in a new order every epoch.

    Every prompt is seen once an epoch, which drawing with replacement would not give. A batch never
    runs short: where an epoch ends in the middle of one, the next epoch fills it up. A short batch
    would be a step of full size on fewer groups, and its gradient noisier than the others.
    """
    rng = random.Random(seed)  # its own, so that the order does not depend on what was sampled
    queue: list[Example] = []
    while True:
        while len(queue) < size:
            queue.extend(rng.sample(list(examples), len(examples)))
        yield queue[:size]
        queue = queue[size:]


def train_step(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    examples: Sequence[Example],
    config: TrainConfig,
    rewards: RewardPool,
    step: int,
) -> dict:
    """Groups, rewards, gradients, update; returns the step's numbers.

    Every batch of samples is used for one update. The policy that is trained is then the one that
    sampled, their ratio is 1, and no old log-probs need to be kept.
    """
    start = time.perf_counter()
    batch = make_batch(policy, examples, config, rewards)
    rollout = time.perf_counter() - start
    numbers = accumulate_gradients(policy, batch, config)
    # Where every advantage is 0 there is nothing to learn. AdamW would still move the weights, by
    # its momentum and its decay, so it is not called.
    update = optimizer_step(policy, optimizer, config, step, learn=numbers["active_sequences"] > 0)
    # The clock needs no synchronisation with the GPU: reading the norm waited for the gradients.
    # Only the optimiser's own kernels are still under way, and count for the next step.
    seconds = time.perf_counter() - start
    tokens = sum(len(m.response) for m in batch.members)
    speed = {
        "seconds": seconds,
        "seconds_rollout": rollout,
        "tokens_per_second": tokens / seconds,
        "peak_memory_mib": peak_memory_mib(),
    }
    return {"step": step, **numbers, **update, **reward_metrics(batch), **speed}


def accumulate_gradients(policy: Policy, batch: Batch, config: TrainConfig) -> dict[str, float]:
    """Forward and backward passes over the step's micro-batches; gradients add up in `.grad`.

    They are the gradients of the whole batch at once, up to rounding, whatever the micro-batch.
    """
    objective = config.objective_function()
    # With advantage 0, a response has loss 0 and gradient 0 at every token. The head would skip it
    # anyhow, but most of the time goes into the backbone, so it is left out there too.
    skip = objective.zero_at_zero_advantage
    active = [m for m in batch.members if not skip or m.advantage != 0]
    # It stays in the denominator, though. A mean over the active tokens alone would pull harder at
    # the few groups that still differ, the more so the better the policy has become.
    flat: set[int] = set() if config.group.count_flat else batch.flat_groups
    counted = [m for m in batch.members if m.group not in flat]
    # The counts are those of the whole step, which a micro-batch does not see. With counts of its
    # own, a micro-batch of short responses would weigh as much as one of long responses.
    counts = {
        "num_tokens": sum(len(m.response) for m in counted),
        "num_sequences": len(counted),
        # A constant of the run, so that a step of long responses is not divided by more.
        "max_length": max(config.sampling.max_given_tokens, config.sampling.max_new_tokens),
    }
    # A micro-batch is padded to its longest member. With like lengths side by side little is
    # padding, and the order of a sum does not change it.
    active.sort(key=lambda m: len(m.prompt) + len(m.response))
    policy.model.train()  # models are loaded in eval mode; the difference is dropout, if there is any
    means, loss = Mean(), 0.0
    for start in range(0, len(active), config.optim.micro_batch):
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
        result.loss.backward()
        # Read after backward() and not before: .item() waits until the device is done, and the
        # backward pass should be queued by then. The first one waits, the others find it idle.
        loss += result.loss.item()
        stats = {name: value.item() for name, value in result.stats.items()}
        means.add(stats.pop("active_tokens"), **{k: v for k, v in stats.items() if k != "tokens"})
    return {"loss": loss, "active_sequences": len(active), "sequences": len(batch.members), **means.result()}


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
        # A signal that arrived in between would leave some tensors updated and others not.
        with undisturbed():
            optimizer.step()
    optimizer.zero_grad(set_to_none=True)  # to None: no memory is held for gradients while sampling
    return {"grad_norm": norm, "skipped": not finite, "lr": optimizer.param_groups[0]["lr"]}


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
        "flat_groups": len(batch.flat_groups) / len({m.group for m in batch.members}),
        "reward_errors": batch.reward_errors,
    }


def _evaluate(
    policy: Policy, held_out: Sequence[Example], config: TrainConfig, rewards: RewardPool, log: MetricsLog, step: int
) -> Accuracy | None:
    """Held-out accuracy, logged. Evaluating more often does not change the run: see `evaluate`."""
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
