"""Group advantages in Triton, once, on [B]; the formula is that of losses/advantages.py.

    A_k = (R_k - mean(R)) / (std(R) + eps)      over the rewards with k's group id, std with K - 1

The members of a group are found by comparing ids. Nothing is sorted, no atomics are needed, and
nothing waits for the device. A test holds the two files together.

Cost: 2 B^2 comparisons. Bytes: the B rewards and ids twice for every BLOCK_N responses.

Source: arXiv:2604.14258 section 3.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...losses.advantages import GroupRewards
from .configs import STEP_SIZES, launch_options

GROUP_SCALE = tl.constexpr(0)
BATCH_SCALE = tl.constexpr(1)
NO_SCALE = tl.constexpr(2)
BLOCK_N, BLOCK_B = 32, 32
_SCALES = {"group": GROUP_SCALE, "batch": BATCH_SCALE, "none": NO_SCALE}


@triton.jit
def others(rewards_ptr, group_ids_ptr, group, start, B, BLOCK_B: tl.constexpr):
    """(rewards [BLOCK_B] from `start`, which exist, mask [BLOCK_N, BLOCK_B] of group members)."""
    other = start + tl.arange(0, BLOCK_B)
    there = other < B
    rewards = tl.load(rewards_ptr + other, mask=there, other=0.0)
    ids = tl.load(group_ids_ptr + other, mask=there, other=0)
    return rewards, there, (ids[None, :] == group[:, None]) & there[None, :]


@triton.jit(do_not_specialize=STEP_SIZES)
def group_advantages_kernel(
    rewards_ptr,
    group_ids_ptr,
    advantages_ptr,
    B,
    SCALE: tl.constexpr,
    KEEP_SINGLE: tl.constexpr,
    EPS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """BLOCK_N responses a program, two passes over the B rewards. 0 for a group without spread."""
    response = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    live = response < B
    own = tl.load(rewards_ptr + response, mask=live, other=0.0)
    group = tl.load(group_ids_ptr + response, mask=live, other=0)
    size = tl.zeros_like(own)
    total = tl.zeros_like(own)
    low = own
    high = own
    everything = tl.sum(tl.zeros_like(own), 0)  # of the rewards' dtype
    for start in range(0, B, BLOCK_B):
        rewards, _, member = others(rewards_ptr, group_ids_ptr, group, start, B, BLOCK_B)
        everything += tl.sum(rewards, 0)
        size += tl.sum(tl.where(member, 1.0, 0.0), 1)
        total += tl.sum(tl.where(member, rewards[None, :], 0.0), 1)
        low = tl.minimum(low, tl.min(tl.where(member, rewards[None, :], float("inf")), 1))
        high = tl.maximum(high, tl.max(tl.where(member, rewards[None, :], float("-inf")), 1))
    mean = total / tl.maximum(size, 1.0)
    scale = tl.zeros_like(own) + 1.0
    if SCALE != NO_SCALE:
        squares = tl.zeros_like(own)
        for start in range(0, B, BLOCK_B):
            rewards, there, member = others(rewards_ptr, group_ids_ptr, group, start, B, BLOCK_B)
            if SCALE == GROUP_SCALE:
                gap = rewards[None, :] - mean[:, None]
                squares += tl.sum(tl.where(member, gap * gap, 0.0), 1)
            else:
                gap = rewards - everything / B
                squares += tl.sum(tl.where(there, gap * gap, 0.0), 0)
        count = size if SCALE == GROUP_SCALE else tl.zeros_like(size) + B
        scale = tl.where(count > 1, tl.sqrt(squares / tl.maximum(count - 1.0, 1.0)) + EPS, 1.0)
    advantage = tl.where(low != high, (own - mean) / scale, 0.0)
    if KEEP_SINGLE:
        advantage = tl.where(size == 1, own, advantage)
    tl.store(advantages_ptr + response, advantage, mask=live)


def group_advantages(groups: GroupRewards) -> Tensor:  # [B]
    """[B] advantages of the responses, as `GroupRewards.per_sequence`."""
    rewards = groups.wide_rewards().contiguous()
    advantages, count = torch.empty_like(rewards), len(rewards)
    if count:
        group_advantages_kernel[(triton.cdiv(count, BLOCK_N),)](
            rewards_ptr=rewards,
            group_ids_ptr=groups.group_ids.contiguous(),
            advantages_ptr=advantages,
            B=count,
            SCALE=_SCALES[groups.scale].value,
            KEEP_SINGLE=groups.singleton == "reward",
            EPS=float(groups.eps),
            BLOCK_N=BLOCK_N,
            BLOCK_B=BLOCK_B,
            **launch_options(4, 1),
        )
    return advantages
