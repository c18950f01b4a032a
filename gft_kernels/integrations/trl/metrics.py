"""What is logged of a fused loss: TRL's names, and what the objective reports.

Rows that the head skipped, because their advantage is 0, have no entropy and no log-prob. Means are
over the others, except that of a clip, which leaves such rows alone: there all of them count.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...head import PolicyLoss
from ...losses.objectives import Sum
from ...losses.ratios import CISPO, GRPO, KL

COUNTS = {"tokens", "active_tokens"}
NAMED_BY_TRL = {"entropy", "kl", "clip_fraction", "ratio"}  # it has these under names of its own


@torch.no_grad()
def log_metrics(trainer: Any, result: PolicyLoss, inputs: dict[str, Any], mask: Tensor) -> None:
    """Append the metrics of a micro-batch of completions, mask [B, C], to the trainer's."""
    found = trainer._metrics["train" if trainer.model.training else "eval"]
    width = mask.shape[1]
    logprobs, entropy = result.logprobs[:, -width:], result.entropy[:, -width:]
    seen = mask.bool() & ~entropy.isnan()
    vectors = {"entropy": (entropy, seen)}
    old = inputs.get("old_per_token_logps")
    old = logprobs if old is None else old
    for part in _parts(trainer.objective):
        if isinstance(part, KL):
            given = {"ref_logprobs": inputs["ref_per_token_logps"], "old_logprobs": old}
            vectors["kl"] = (part.metrics(logprobs, **given)["kl"], seen)
        elif isinstance(part, GRPO | CISPO):
            vectors |= {name: (x, mask.bool()) for name, x in _clipped(part, logprobs - old, inputs).items()}
    for name, value in _means(trainer, vectors).items():
        found[name].append(value)
    _log_extremes(trainer, found, vectors)
    for name, value in means_of(trainer, result.stats).items():
        if name not in NAMED_BY_TRL:
            found[name].append(value)


def _parts(objective: Any) -> list[Any]:
    if isinstance(objective, Sum):
        return [part for term in objective.parts for part in _parts(term)]
    return [objective]


def _clipped(part: GRPO | CISPO, log_ratio: Tensor, inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Where the clip acts, by TRL's names. A skipped row, NaN here, is on no side of it."""
    ratio, advantages = log_ratio.exp(), inputs["advantages"]
    advantages = advantages[:, None] if advantages.ndim == 1 else advantages
    high = (ratio > 1 + part.clip_high) & (advantages > 0)
    if isinstance(part, CISPO):
        return {"cispo_clip_ratio": high}
    low = (ratio < 1 - part.clip_low) & (advantages < 0)
    return {"clip_ratio/low_mean": low, "clip_ratio/high_mean": high, "clip_ratio/region_mean": low | high}


def _means(trainer: Any, vectors: dict[str, tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Means over the tokens of all processes, in one reduction; NaN where no token was seen."""
    sums = [torch.where(where, x.float(), 0.0).sum() for x, where in vectors.values()]
    counts = [where.sum().float() for _, where in vectors.values()]
    totals = trainer.accelerator.reduce(torch.stack([*sums, *counts]), reduction="sum")
    sums, counts = totals.chunk(2)
    return dict(zip(vectors, (sums / counts).tolist(), strict=True))


def _log_extremes(trainer: Any, found: Any, vectors: dict[str, tuple[Tensor, Tensor]]) -> None:
    for name, source, extreme in (
        ("clip_ratio/low_min", "clip_ratio/low_mean", torch.amin),
        ("clip_ratio/high_max", "clip_ratio/high_mean", torch.amax),
    ):
        if source in vectors:
            clipped, where = vectors[source]
            shares = trainer.accelerator.gather((clipped & where).sum(1) / where.sum(1))
            shares = shares[~shares.isnan()]
            found[name].append(extreme(shares).item() if len(shares) else float("nan"))


@torch.no_grad()
def means_of(trainer: Any, stats: dict[str, Tensor]) -> dict[str, float]:
    """`stats` averaged over the active tokens of all processes, and the share that is active."""
    names = [name for name in stats if name not in COUNTS]
    active = stats["active_tokens"].float()
    sums = [torch.where(active > 0, stats[name].float() * active, 0.0) for name in names]
    totals = trainer.accelerator.reduce(torch.stack([*sums, active, stats["tokens"].float()]), reduction="sum")
    *sums, active, tokens = totals.tolist()
    means = {name: total / active if active else float("nan") for name, total in zip(names, sums, strict=True)}
    return means | {"active_fraction": active / tokens if tokens else float("nan")}
