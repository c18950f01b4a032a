"""Where the gpu tests run, and their problems.

They run on the device at full size, or with GFT_KERNELS_DRY_RUN=1 in the interpreter at tiny sizes.
"""

from __future__ import annotations

import os
from typing import NamedTuple, TypeVar

import pytest
import torch
from torch import Tensor

from gft_kernels import GroupRewards, linear_logprob

T = TypeVar("T")

DRY = os.environ.get("GFT_KERNELS_DRY_RUN") == "1"
if DRY:
    os.environ["TRITON_INTERPRET"] = "1"  # before the Triton engine is imported
DEVICE = "cpu" if DRY else "cuda"
MARKS = [pytest.mark.gpu, pytest.mark.skipif(not (DRY or torch.cuda.is_available()), reason="no CUDA or ROCm device")]

# RMS of a gradient's error over RMS of the gradient. 16 bits allow three roundings (dz, the scaled
# hidden state, the result), 2.9e-3 in bf16 on average. Where few rows carry the norm they do not
# average, and FEW is allowed on top. fp32 does not allow TF32.
LIMIT = {torch.float64: 1e-10, torch.float32: 2e-6, torch.float16: 4e-4, torch.bfloat16: 3e-3}
FEW = {torch.bfloat16: 5e-4, torch.float16: 6e-5}
LOGPROB_LIMIT = 5e-4  # nats
TAU = 0.7


def sized(full: T, dry: T) -> T:
    """The size of a dimension here."""
    return dry if DRY else full


def needs_memory(gib: float) -> None:
    """Skip the test where the device has less memory free; a dry run holds next to nothing."""
    if not DRY:
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info()[0] / 2**30
        if free < gib:
            pytest.skip(f"needs {gib:.0f} GiB of device memory, {free:.0f} are free")


class Problem(NamedTuple):
    hidden: Tensor  # [N, D]
    weight: Tensor  # [V, D]
    bias: Tensor  # [V]
    targets: Tensor  # [N], -100 where masked
    advantages: Tensor  # [N]
    weights: Tensor  # [N] token weights
    rewards: Tensor  # [B] groups of 4 responses, the second group without spread
    sequence_ids: Tensor  # [N]
    old: Tensor  # [N]
    ref: Tensor  # [N]

    def groups(self) -> GroupRewards:
        return GroupRewards(
            self.rewards, torch.arange(len(self.rewards), device=self.rewards.device) // 4, self.sequence_ids
        )

    def double(self) -> Problem:
        return Problem(*(x.double() if x.is_floating_point() else x for x in self))

    def leaves(self) -> Problem:
        return self._replace(
            **{name: getattr(self, name).detach().clone().requires_grad_() for name in ("hidden", "weight", "bias")}
        )


def make_problem(n: int, d: int, v: int, dtype: torch.dtype, *, masked: bool = True) -> Problem:
    """A third of the targets likely ones.

    No p is within 0.1% of TAU and no ratio near a clip: the losses have no jump nearby.
    """
    g = torch.Generator(DEVICE).manual_seed(0)
    every = torch.arange(n, device=DEVICE)
    weight = (torch.randn(v, d, generator=g, device=DEVICE) * d**-0.5).to(dtype)
    targets = torch.randint(v, (n,), generator=g, device=DEVICE)
    targets[n // 2] = v - 1  # the last column
    hidden = torch.randn(n, d, generator=g, device=DEVICE)
    hidden = torch.where((every % 3 == 0)[:, None], hidden + 12 * weight[targets].float(), hidden).to(dtype)
    logprobs = linear_logprob(hidden.double(), weight.double(), targets, backend="eager").logprobs
    hidden = torch.where(((logprobs.exp() / TAU - 1).abs() < 1e-3)[:, None], 0, hidden)
    logprobs = linear_logprob(hidden.double(), weight.double(), targets, backend="eager").logprobs
    if masked:
        targets = targets.masked_fill(every % 5 == 1, -100)
    sequences = max((n + 15) // 16, 8)
    rewards = torch.tensor([0.0, 0.25, 0.5, 1.0], device=DEVICE).repeat((sequences + 3) // 4)
    rewards[4:8] = 1.0
    steps = torch.tensor([-0.5, -0.1, 0.05, 0.1, 0.5], device=DEVICE)
    old, ref = ((logprobs + steps[(every * k) % 5]).float() for k in (1, 2))
    advantages = torch.randn(n, generator=g, device=DEVICE)
    bias = (0.3 * torch.randn(v, generator=g, device=DEVICE)).to(dtype)
    weights = (targets != -100) / 8
    return Problem(hidden, weight, bias, targets, advantages, weights, rewards, every // 2 % len(rewards), old, ref)


def relative(found: Tensor, expected: Tensor) -> float:
    """Norm of the error over the norm of `expected`."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def assert_gradients(found: Problem, expected: Problem, names: tuple[str, ...] = ("hidden", "weight")) -> None:
    """Gradients of the leaves within the limit of their dtype.

    fp16's one rounding below its normal range comes on top.
    """
    for name in names:
        got, want = getattr(found, name).grad, getattr(expected, name).grad.double()
        few = FEW.get(got.dtype, 0.0) if len(found.hidden) < 500 else 0.0
        rounding = (want.to(got.dtype).double() - want).norm() / want.norm() if got.dtype == torch.float16 else 0.0
        error = relative(got, want)
        assert error <= LIMIT[got.dtype] + few + rounding, f"d{name}: relative error {error:.2e} in {got.dtype}"
