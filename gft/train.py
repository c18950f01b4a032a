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

Here is the order of a run and of a step. groups.py samples and scores the responses, update.py
makes gradients, optim.py the update, and keeper.py saves what the run needs to go on (`RunState`).
A batch of rollouts serves one update, or several (`ReuseConfig`).
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch

from .checkpoint import Checkpoints, check_space
from .config import TrainConfig
from .data.files import Example
from .distributed import agreed, check_all, is_first, on_first, stream_seed
from .evaluate import Accuracy, evaluate
from .groups import Batch, make_batch
from .held_out import Answer, write_answers
from .keeper import Keeper
from .loggers import logging_to
from .logprobs import token_logprobs
from .metrics import MetricsLog
from .optim import make_optimizer, optimizer_step
from .parallel import spread, whole_weights
from .policy import Policy
from .record import open_record
from .reference import Reference
from .report import Progress
from .rewards.pool import RewardPool
from .state import RunState, random_state
from .stop import held
from .update import accumulate_gradients, reward_metrics, speed
from .usable import usable_examples, usable_held_out
from .watch import watch


def train(
    policy: Policy,
    examples: Sequence[Example],
    held_out: Sequence[Example],
    config: TrainConfig,
    rewards: RewardPool,
    log: MetricsLog,
    progress: Progress,
    start: Path | None = None,
    reference: Reference | None = None,
) -> tuple[Accuracy | None, Accuracy | None]:
    """Train `policy` in place; returns the held-out accuracy before and after.

    `start` is the checkpoint to go on from, and `policy` then the model in it. `reference` is what
    KL is measured from.

    Raises:
        ValueError: what `usable_examples` and `usable_held_out` refuse.
        RuntimeError: the gradient stayed non-finite, or too few responses could be scored.
        OSError: no room for checkpoints.
        Stopped: a signal ended the run; what it needs to go on is saved.
    """
    examples = usable_examples(policy, examples, config, progress.say)
    held_out = usable_held_out(policy, held_out, config.sampling.max_new_tokens, config.max_bad_fraction)
    check_space(policy, config)
    # From here on the folder is this run's: nothing more can be refused.
    run = on_first(lambda: open_record(config, policy.device, examples, held_out, progress.say))
    spread(policy, config.parallel)
    # Seeded here and not earlier: whatever made the model may have drawn random numbers.
    torch.manual_seed(stream_seed(config.seed))
    # Parameters and Adam's state are fp32, whatever the model computes in. Near 0.02, a usual size
    # of a weight, bf16 numbers are 1e-4 apart: an update of lr = 1e-6 would be rounded away.
    optimizer = make_optimizer(policy.model, config.optim)
    checkpoints = Checkpoints(config.out, run, policy, optimizer, examples, config.keep)
    state = checkpoints.restore(start, progress.say) if start else RunState(random=random_state(policy.device))
    log.open(state.offset)
    progress.done = state.step
    if start:
        progress.say(f"goes on after step {state.step}, from {start}")
    order = islice(prompt_order(len(examples), config.seed), state.cursor, None)
    keeper = Keeper(checkpoints, config, log, progress.say, start, state.step if start else None)
    # Signals are taken where `check_all` stands, and no update is lost.
    with held(), logging_to(config, run, log, progress.say), keeper.rescuing(state):
        while True:
            # Saved before it is evaluated, which may be long, may fail or may be interrupted.
            keeper.save_if_due(state)
            evaluate_if_due(policy, held_out, config, rewards, log, state)
            if state.step == config.steps:
                break
            check_all()
            if state.in_use is None:
                chosen = [examples[i] for i in islice(order, config.prompts_per_rollout())]
                with whole_weights(policy.model):
                    state.hold(roll_out(policy, chosen, config, rewards, reference), len(chosen), policy.device)
                check_all()
            row = train_step(policy, optimizer, config, state)
            log.write(row)
            state.advance(config.reuse.updates, row["skipped"], log.offset, policy.device)
            progress.step(row)
            watch(row, state, config, rewards, progress)
    return state.accuracies.get(0), state.accuracies.get(config.steps)


def prompt_order(count: int, seed: int) -> Iterator[int]:
    """Endless places of prompts, in a new order every epoch.

    Every prompt is seen once an epoch, which drawing with replacement would not give. A batch never
    runs short: where an epoch ends in the middle of one, the next epoch fills it up. A short batch
    would be a step of full size on fewer groups, and its gradient noisier than the others.
    """
    rng = random.Random(seed)  # its own, so that the order does not depend on what was sampled
    while True:
        yield from rng.sample(range(count), count)


def roll_out(
    policy: Policy,
    examples: Sequence[Example],
    config: TrainConfig,
    rewards: RewardPool,
    reference: Reference | None,
) -> Batch:
    """Groups of scored responses, with the log-probs that updates compare theirs with."""
    batch = make_batch(policy, examples, config, rewards)
    with agreed():
        if config.keeps_old_logprobs():
            # Computed by the trainer and not taken from the sampler: the ratio should be 1 as long
            # as the weights are the same, whatever the numerics of the sampler.
            for member, logprobs in zip(batch.members, token_logprobs(policy, batch.members, config), strict=True):
                member.old_logprobs = logprobs
        if reference is not None:
            for member, logprobs in zip(batch.members, reference.logprobs(batch.members, config), strict=True):
                member.ref_logprobs = logprobs
    return batch


def train_step(policy: Policy, optimizer: torch.optim.Optimizer, config: TrainConfig, state: RunState) -> dict:
    """Gradients and update on the next part of the rollouts; returns the step's numbers."""
    start = time.perf_counter()
    assert state.in_use is not None
    first = state.used % config.reuse.rollout_steps * config.prompts_per_step
    batch = state.in_use.part(range(first, first + config.prompts_per_step))
    numbers = accumulate_gradients(policy, batch, config)
    state.is_changing = True  # until its row is logged too
    # Where every advantage is 0 there is nothing to learn. AdamW would still move the weights, by
    # its momentum and its decay, so it is not called.
    update = optimizer_step(policy, optimizer, config, state.step + 1, learn=numbers["active_sequences"] > 0)
    # The clock needs no synchronisation with the GPU: reading the norm waited for the gradients.
    # Only the optimiser's own kernels are still under way, and count for the next step.
    seconds = {"seconds_update": time.perf_counter() - start}
    if state.used == 0:  # sampling and scoring count for the first step that they serve
        seconds |= state.in_use.seconds
    return {"step": state.step + 1, **numbers, **update, **reward_metrics(batch), **speed(batch, seconds)}


def evaluate_if_due(
    policy: Policy,
    held_out: Sequence[Example],
    config: TrainConfig,
    rewards: RewardPool,
    log: MetricsLog,
    state: RunState,
) -> None:
    """Held-out accuracy, logged. Evaluating more often does not change the run: see `evaluate`."""
    step, every = state.step, config.evaluate.eval_every
    due = step in (0, config.steps) or (every > 0 and step % every == 0)
    if not held_out or not due or step in state.accuracies:
        return
    answers: list[Answer] = []
    with whole_weights(policy.model):
        found = evaluate(
            policy,
            held_out,
            rewards,
            samples=config.evaluate.eval_samples,
            max_new_tokens=config.sampling.max_new_tokens,
            batch=config.sampling.batch,
            keep=answers.extend,
        )
    if is_first():
        write_answers(config.out, step, answers, config.evaluate.eval_answers)
    log.write({"step": step, **found.row()})
    state.accuracies[step], state.offset = found, log.offset
