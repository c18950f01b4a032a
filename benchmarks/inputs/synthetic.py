"""Made-up hidden states, heads and targets."""

from __future__ import annotations

import torch
from torch import Tensor

Problem = tuple[Tensor, Tensor, Tensor]  # hidden [N, D], weight [V, D], targets [N]
CANDIDATES = 32  # likely tokens of a row


def random(N: int, D: int, V: int, generator: torch.Generator) -> Problem:
    """Flat softmaxes.

    A quarter of the targets are likely ones, the head's own direction added, so that both sides of
    tau occur.
    """
    on: dict = {"generator": generator, "device": generator.device}
    hidden = torch.randn(N, D, **on)
    weight = torch.randn(V, D, **on).mul_(D**-0.5)
    targets = torch.randint(0, V, (N,), **on)
    likely = torch.rand(N, **on) < 0.25
    hidden[likely] += 16 * weight[targets[likely]]
    return hidden, weight, targets


def peaked(N: int, D: int, V: int, generator: torch.Generator) -> Problem:
    """Softmaxes with the profile of a language model's, targets sampled from them.

    A token's base rate is Zipf's, carried by one direction of hidden space; noise spreads it;
    CANDIDATES tokens of a row, drawn by base rate, fall off as a power of their rank from a
    strength drawn for the row. The six constants were fitted to SmolLM2-135M on GSM8K answers and
    its own samples: mass outside the k likeliest tokens, and share of columns above 2^-8 to 2^-16
    in blocks of 128 and 512 rows (benchmarks/LOG.md has both profiles).
    """
    on: dict = {"generator": generator, "device": generator.device}
    rate = (torch.arange(V, device=generator.device) + 24.4) ** -1.56
    rate /= rate.sum()
    common = torch.nn.functional.normalize(torch.randn(D, **on), dim=0)
    own = torch.randn(V, D, **on).mul_(D**-0.5)
    own -= (own @ common)[:, None] * common
    weight = own + rate.log()[:, None] * common
    hidden = 2.5 * torch.randn(N, D, **on)
    hidden += (1 - hidden @ common)[:, None] * common
    strength = 3.1 + 3.25 * torch.randn(N, 1, **on)
    candidates = torch.multinomial(rate, N * CANDIDATES, replacement=True, generator=generator).view(N, CANDIDATES)
    fall = 1.44 * torch.arange(1, CANDIDATES + 1, device=generator.device).log()
    boost = (strength - fall - rate.log()[candidates]).clamp(min=0)
    for k in range(CANDIDATES):
        hidden += boost[:, k, None] * own[candidates[:, k]]
    targets = [
        (rows @ weight.T).softmax(1).multinomial(1, generator=generator).squeeze(1) for rows in hidden.split(256)
    ]
    return hidden, weight, torch.cat(targets)
