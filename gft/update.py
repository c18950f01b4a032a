"""From a batch of scored responses to the gradients of an update: gradients in micro-batches."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import torch
from torch import Tensor

from gft_kernels import PolicyLoss, kl, token_weights
from gft_kernels.integrations.hf import PolicyBatch

from .collate import Rows, collate, collate_packed
from .data.files import Example
from .groups import Batch, Member
from .metrics import Mean, peak_memory_mib
from .model.policy import Policy
from .processes.distributed import gather, total, world_size
from .processes.parallel import reducing
from .settings.config import TrainConfig
from .sources import means_by_source
from .stop import check


def accumulate_gradients(policy: Policy, batch: Batch, config: TrainConfig) -> dict[str, float]:
    """Forward and backward passes over the step's micro-batches; gradients add up in `.grad`.

    They are the gradients of the whole batch at once, up to rounding, whatever the micro-batch.
    """
    # With advantage 0, a response has loss 0 and gradient 0 at every token. The head would skip it
    # anyhow, but most of the time goes into the backbone, so it is left out there too.
    skip = config.objective_function().zero_at_zero_advantage
    trained = trained_members(batch, config)
    active = [m for m in trained if not skip or m.advantage != 0]
    counts = step_counts(batch, config)
    # A micro-batch is padded to its longest member. With like lengths side by side little is
    # padding, and the order of a sum does not change it.
    active.sort(key=lambda m: len(m.prompt) + len(m.response))
    policy.learn()
    (active_sequences,) = total(len(active))
    parts = micro_batches(active, config)
    means, loss, aux_loss = Mean(), 0.0, 0.0
    for place, members in enumerate(parts, start=1):
        check()  # the gradients so far are lost, and made again from the same rollouts
        rows = rows_of(members, policy, config)
        given = policy_batch(members, rows, config, counts)
        with reducing(policy, last=place == len(parts)):
            result = policy.loss(rows.inputs, given)
            summed = result.loss
            if result.aux_loss is not None:
                # Router balancing of mixtures of experts. It is a mean over the tokens of a forward
                # pass, so over the step it is the mean of the micro-batches, each by its share.
                share = sum(bool(m.response) for m in members) / active_sequences * result.aux_loss
                summed, aux_loss = summed + share, aux_loss + share.item()
            (summed * world_size()).backward()  # its gradient is averaged over the ranks
        # Read after backward() and not before: .item() waits until the device is done, and the
        # backward pass should be queued by then. The first one waits, the others find it idle.
        loss += result.loss.item()
        stats = {name: value.item() for name, value in result.stats.items()}
        means.add(stats.pop("active_tokens"), **{k: v for k, v in stats.items() if k != "tokens"})
        assert given.objective is not None
        extra = distances(result, members, rows, given, on_policy=config.reuse.updates == 1)
        for name, (mean, count) in means_by_source(result, given.objective, members, rows, extra).items():
            means.add(count, **{name: mean})
    (loss, aux_loss), (sequences,) = total(loss, aux_loss), total(len(batch.members))
    balancing = {"aux_loss": aux_loss} if aux_loss else {}
    return {
        "loss": loss,
        **balancing,
        "active_sequences": active_sequences,
        "sequences": sequences,
        **means.of_all_ranks().result(),
    }


def micro_batches(active: Sequence[Member], config: TrainConfig) -> list[Sequence[Member]]:
    """The members in parts, as many of them on every rank: forward passes are those of all ranks.

    Where others have more, a rank takes part with a member that has no response. Its loss is 0.
    """
    size = config.optim.micro_batch
    parts = [active[start : start + size] for start in range(0, len(active), size)]
    nobody = Member(-1, "self", [0, 0], [], "", False, Example("", ""))
    if config.keeps_old_logprobs():
        nobody.old_logprobs = []
    if config.reuse.kl is not None:
        nobody.ref_logprobs = []
    return parts + [[nobody]] * (max(gather(len(parts))) - len(parts))


def trained_members(batch: Batch, config: TrainConfig) -> list[Member]:
    """The members that the loss is made of.

    Where own responses that were cut are masked, they have had their say in the mean and std of
    their group, and are neither trained on nor counted (DAPO's overlong filtering,
    arXiv:2503.14476).
    """
    mask = config.sampling.truncated == "mask"
    return [m for m in batch.members if not (mask and m.truncated and m.source == "self")]


def rows_of(members: Sequence[Member], policy: Policy, config: TrainConfig) -> Rows:
    """The members as rows of the model: packed if that was asked for, else padded."""
    if config.optim.packed:
        return collate_packed(members, policy.device)
    return collate(members, policy.tokenizer.pad_token_id, policy.device)


def policy_batch(members: Sequence[Member], rows: Rows, config: TrainConfig, counts: dict[str, int]) -> PolicyBatch:
    """What the model's forward needs for the loss of these rows."""
    weights = token_weights(config.reduction, rows.trained.flatten(), rows.sequence.flatten(), **counts)
    tau: float | Tensor = config.tau
    if config.group.rectify == "given":
        # The 1 / p that C undoes stands in the gradient of responses that another wrote. A sample
        # of the policy's own was drawn with probability p, which cancels it already.
        tau = rows.spread([0.0 if m.source == "self" else config.tau for m in members])
    old, ref = (
        None if any(v is None for v in values) else rows.lay([v for v in values if v is not None])
        for values in ([m.old_logprobs for m in members], [m.ref_logprobs for m in members])
    )
    importance = None
    if config.reuse.importance_cap is not None and old is not None:
        own, sampled = _sampled(members, rows)
        # What was drawn by other numerics is weighted as if the trainer's own had drawn it.
        ratio = (old - sampled).exp().clamp(max=config.reuse.importance_cap)
        importance = torch.where(own, ratio, 1.0)
    # Advantages come with the members: a micro-batch may hold a part of a group, whose mean and
    # std are not those of the group. Masked positions, such as prompts, cost the head nothing:
    # with V in the tens of thousands a row of it costs as much as several layers.
    return PolicyBatch(
        rows.targets,
        config.objective_function(tau, rows.sequence),
        rows.spread([m.advantage for m in members]),
        token_weights=weights.view(rows.targets.shape),
        old_logprobs=old,
        ref_logprobs=ref,
        importance_weights=importance,
        backend=config.head_backend(),
    )


def _sampled(members: Sequence[Member], rows: Rows) -> tuple[Tensor, Tensor]:
    """Which tokens were sampled, and the sampler's log-probs of them; [B, T-1] each."""
    own = rows.trained & rows.spread([m.logprobs is not None for m in members])
    return own, rows.lay([m.logprobs if m.logprobs is not None else [0.0] * len(m.response) for m in members])


@torch.no_grad()
def distances(
    result: PolicyLoss, members: Sequence[Member], rows: Rows, given: PolicyBatch, on_policy: bool
) -> dict[str, Tensor]:
    """How far apart policies are, at every token [B, T-1] where it can be said: else NaN.

    "gap": |log p of the sampler - log p of the trainer|, of one and the same policy. It is what
    numerics differ by, and is not 0 in bf16, or where another engine samples. It takes old
    log-probs, unless the policy is still the one that sampled (`on_policy`).
    "kl": the k3 estimator towards the reference policy.
    """
    own, sampled = _sampled(members, rows)
    at_sampling = result.logprobs if on_policy else given.old_logprobs
    found = {} if at_sampling is None else {"gap": torch.where(own, (sampled - at_sampling).abs(), torch.nan)}
    if given.ref_logprobs is not None:
        found |= kl().metrics(result.logprobs, ref_logprobs=given.ref_logprobs)
    return found


def step_counts(batch: Batch, config: TrainConfig) -> dict[str, int]:
    """The denominators of the reductions.

    They are those of the whole step, which a micro-batch does not see. With counts of its own, a
    micro-batch of short responses would weigh as much as one of long responses.
    """
    # Members that are not trained on stay in the denominator. A mean over the active tokens alone
    # would pull harder at the few groups that still differ, the more so the better the policy is.
    # Flat groups are trained on all the same where there is a KL, and count then.
    learns_nothing = config.objective_function().zero_at_zero_advantage
    flat: set[int] = batch.flat_groups if learns_nothing and not config.group.count_flat else set()
    counted = [m for m in trained_members(batch, config) if m.group not in flat]
    tokens, sequences = total(sum(len(m.response) for m in counted), len(counted))
    return {
        "num_tokens": tokens,
        "num_sequences": sequences,
        # A constant of the run, so that a step of long responses is not divided by more.
        "max_length": max(config.sampling.max_given_tokens, config.sampling.max_new_tokens),
    }


def reward_metrics(batch: Batch) -> dict[str, float]:
    """Mean reward of every source and every term of a sum, and what can go wrong with responses."""
    rewards, lengths = Mean(), Mean()
    scored = [reward for own in gather([m.reward for m in batch.members if m.reward is not None]) for reward in own]
    flat, groups, failed = total(len(batch.flat_groups), len({m.group for m in batch.members}), len(batch.failed))
    for m in batch.members:
        count = len(m.response)
        lengths.add(1, truncated=float(m.truncated), **{"response_tokens": count, f"response_tokens_{m.source}": count})
        if m.reward is not None:
            parts = {f"reward/{name}": value for name, value in m.reward_parts.items()}
            rewards.add(1, **{"reward": m.reward, f"reward_{m.source}": m.reward, **parts})
    return {
        **rewards.of_all_ranks().result(),
        **lengths.of_all_ranks().result(),
        "reward_std": statistics.pstdev(scored) if scored else math.nan,
        "flat_groups": flat / max(1, groups),
        "reward_errors": failed,
    }


def speed(batch: Batch, seconds: dict[str, float]) -> dict[str, float]:
    """What a step took."""
    (tokens,) = total(sum(len(m.response) for m in batch.members))
    whole_step = sum(seconds.values())
    memory = {"peak_memory_mib": max(gather(peak_memory_mib()))}
    return {"seconds": whole_step, **seconds, "tokens_per_second": tokens / whole_step, **memory}
