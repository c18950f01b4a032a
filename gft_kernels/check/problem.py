"""A batch that every device can judge: no loss jumps near its numbers."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ..ops.linear_logprob import linear_logprob


@dataclass
class Problem:
    """A batch whose losses have no jump nearby: no p within 0.1% of tau, no ratio at a clip."""

    hidden: Tensor  # [N, D]
    weight: Tensor  # [V, D]
    bias: Tensor  # [V]
    targets: Tensor  # [N]
    token_weights: Tensor  # [N]
    rewards: Tensor  # [B]
    group_ids: Tensor  # [B]
    sequence_ids: Tensor  # [N]
    old: Tensor  # [N]
    ref: Tensor  # [N]

    def leaves(self, dtype: torch.dtype | None = None) -> Problem:
        """The same numbers, in `dtype` if given, as fresh leaves where gradients are wanted."""
        values = {f.name: getattr(self, f.name).detach() for f in fields(self)}
        if dtype is not None:
            values = {name: x.to(dtype) if x.is_floating_point() else x for name, x in values.items()}
        values |= {name: values[name].clone().requires_grad_() for name in ("hidden", "weight", "bias")}
        return Problem(**values)


def make_problem(rows: int, size: int, vocabulary: int, dtype: torch.dtype, device: str) -> Problem:
    """Sequences of 16 tokens in groups of 4, one of them without spread.

    Every third target is a likely one, and every fifth is masked.
    """
    g = torch.Generator(device).manual_seed(0)
    every = torch.arange(rows, device=device)
    weight = (torch.randn(vocabulary, size, generator=g, device=device) * size**-0.5).to(dtype)
    targets = torch.randint(vocabulary, (rows,), generator=g, device=device)
    hidden = torch.randn(rows, size, generator=g, device=device)
    hidden = torch.where((every % 3 == 0)[:, None], hidden + 12 * weight[targets].float(), hidden).to(dtype)
    logprobs = linear_logprob(hidden.double(), weight.double(), targets, backend="eager").logprobs
    near_tau = (logprobs.exp() / 0.7 - 1).abs() < 1e-3
    targets = targets.masked_fill((every % 5 == 0) | near_tau, -100)
    sequence_ids = every // 16
    sequences = int(sequence_ids[-1]) + 1
    group_ids = torch.arange(sequences, device=device) // 4
    rewards = (torch.randint(5, (sequences,), generator=g, device=device) / 4).masked_fill(group_ids == 1, 1.0)
    # Ratios far from a clip at 0.8 or 1.2.
    steps = torch.tensor([-0.5, -0.1, 0.05, 0.1, 0.5], device=device)
    old, ref = ((logprobs + steps[(every * k) % 5]).float() for k in (1, 2))
    bias = (0.3 * torch.randn(vocabulary, generator=g, device=device)).to(dtype)
    return Problem(hidden, weight, bias, targets, (targets != -100) / 8, rewards, group_ids, sequence_ids, old, ref)
