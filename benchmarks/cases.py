"""What is measured: head shapes and batches, made the same way for every provider from a seed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

TAU = 0.7


@dataclass(frozen=True)
class Case:
    """N rows of a head [V, D]. `masked` is the share of ignored targets, `flat` of groups without spread (advantage 0)."""

    name: str
    N: int
    D: int
    V: int
    masked: float = 0.0
    flat: float = 0.0
    dtype: torch.dtype = torch.float32


def _pair(name: str, *shape: int, dtype: torch.dtype = torch.float32) -> tuple[Case, Case]:
    """The same head with every row active, and as a GFT batch."""
    return Case(f"{name} all-active", *shape, dtype=dtype), Case(f"{name} gft-batch", *shape, masked=0.30, flat=0.25, dtype=dtype)


CPU_CASES = _pair("small", 2048, 512, 32768)
TINY_CASES = _pair("tiny", 1024, 64, 1000)
INTERPRETER_CASES = _pair("interpreter", 32, 16, 100, dtype=torch.bfloat16)[1:]
GPU_CASES = (  # the one the targets are about first: a time limit takes the last
    *_pair("published", 8192, 4096, 131072, dtype=torch.bfloat16),
    *_pair("qwen2.5-1.5b", 8192, 1536, 151936, dtype=torch.bfloat16),
)


@dataclass
class Batch:
    hidden: Tensor  # [N, D]
    weight: Tensor  # [V, D]
    targets: Tensor  # [N], -100 where masked
    advantages: Tensor  # [N]
    token_weights: Tensor  # [N] token-mean


def thinned(batch: Batch, rows: int) -> Batch:
    """Evenly spaced rows of a batch, for the correctness gate: an fp64 oracle of all rows would not fit."""
    every = slice(None, None, max(len(batch.targets) // rows, 1))
    return Batch(batch.hidden[every], batch.weight, batch.targets[every], batch.advantages[every], batch.token_weights[every])


def make_batch(case: Case, device: str = "cpu", seed: int = 0) -> Batch:
    """Groups of 8 sequences of 32 tokens; the first tokens of a sequence are its masked prompt. A quarter of the targets
    are likely ones (the head's own direction added), so that both sides of tau occur."""
    on: dict = {"generator": torch.Generator(device).manual_seed(seed), "device": device}
    hidden = torch.randn(case.N, case.D, **on)
    weight = torch.randn(case.V, case.D, **on).mul_(case.D**-0.5)
    targets = torch.randint(0, case.V, (case.N,), **on)
    likely = torch.rand(case.N, **on) < 0.25
    hidden[likely] += 16 * weight[targets[likely]]
    sequence = torch.arange(case.N, device=device) // 32
    position = torch.arange(case.N, device=device) % 32
    targets[position < round(32 * case.masked)] = -100
    advantages = torch.randn(int(sequence.max()) + 1, **on)[sequence]
    groups = sequence // 8
    advantages[groups < round(case.flat * (int(groups.max()) + 1))] = 0
    valid = targets != -100
    return Batch(hidden.to(case.dtype), weight.to(case.dtype), targets, advantages, valid / valid.sum())
