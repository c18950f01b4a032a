"""Group-normalised advantages (group advantage learning, arXiv:2604.14258 section 3).

A_k = (R_k - mean(R)) / (std(R) + eps)        mean and std (K - 1) over the responses of one prompt's group
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

Scale = Literal["group", "batch", "none"]
Singleton = Literal["reward", "zero"]


class GroupStatistics(NamedTuple):
    """Per group [G]; `group_of` [B] maps a response to its group."""

    group_of: Tensor  # [B]
    size: Tensor
    mean: Tensor
    std: Tensor
    spread: Tensor  # bool: two rewards of the group differ


def check_rewards(rewards: Tensor, group_ids: Tensor, scale: str, singleton: str) -> None:
    """Refuse what no group's advantage can be taken from; waits for the device once.

    Raises:
        ValueError: shapes differ, a reward is NaN or infinite, unknown scale or singleton.
        TypeError: rewards are not floating point, or group_ids are not integers.
    """
    if scale not in get_args(Scale):
        raise ValueError(f"scale = {scale!r}: choose 'group', 'batch' or 'none'.")
    if singleton not in get_args(Singleton):
        raise ValueError(f"singleton = {singleton!r}: choose 'reward' or 'zero'.")
    if rewards.ndim != 1 or rewards.shape != group_ids.shape:
        raise ValueError(
            f"rewards and group_ids must both be [B]; got {tuple(rewards.shape)} and {tuple(group_ids.shape)}."
        )
    if not rewards.is_floating_point():
        raise TypeError(f"rewards must be floating point, got {rewards.dtype}: use rewards.float().")
    if group_ids.is_floating_point() or group_ids.dtype == torch.bool:
        raise TypeError(f"group_ids must be integers, got {group_ids.dtype}.")
    bad = ~torch.isfinite(rewards)
    if bad.any():
        k = int(bad.nonzero()[0])
        raise ValueError(
            f"rewards[{k}] = {rewards[k].item()}: a reward must be finite. "
            "Drop the response or score it before the loss."
        )


def group_statistics(
    rewards: Tensor,  # [B]
    group_ids: Tensor,  # [B]
) -> GroupStatistics:
    """Size, mean, unbiased std and spread of every group, with no atomics (a [G, B] membership mask)."""
    _, index = torch.unique(group_ids, return_inverse=True)
    groups = int(index.max()) + 1 if index.numel() else 0
    member = index == torch.arange(groups, device=index.device)[:, None]  # [G, B]
    size = member.sum(1)
    mean = torch.where(member, rewards, 0).sum(1) / size
    squares = torch.where(member, (rewards - mean[index]) ** 2, 0).sum(1)
    std = (squares / (size - 1).clamp(min=1)).sqrt()
    lowest = rewards.expand(groups, -1).masked_fill(~member, torch.inf).amin(1) if groups else mean
    highest = rewards.expand(groups, -1).masked_fill(~member, -torch.inf).amax(1) if groups else mean
    return GroupStatistics(index, size, mean, std, lowest != highest)


def group_advantages(
    rewards: Tensor,  # [B]
    group_ids: Tensor,  # [B]
    *,
    scale: Scale = "group",
    singleton: Singleton = "reward",
    eps: float = 1e-6,
) -> Tensor:  # [B]
    """Advantage of every response within its prompt's group.

    Equivalent to, for each group::

        (R - R.mean()) / (R.std() + eps)

    but exactly 0 when all rewards of a group are equal, which fp32's std is not.

    Args:
        rewards: [B] floating point, finite.
        group_ids: [B] integers; equal ids are one group, in any order.
        scale: divide by the std of the "group", of the whole "batch", or not at all ("none",
            Dr.GRPO).
        singleton: a group of one keeps its "reward" (so SFT is the case K = 1, R = 1) or gets
            "zero".
        eps: added to the std.

    Returns:
        [B], dtype of rewards, not differentiable.

    Raises:
        ValueError: shapes, non-finite rewards, unknown scale or singleton. TypeError: dtypes.

    Source: arXiv:2604.14258 section 3; Dr.GRPO arXiv:2503.20783 for scale="none".
    """
    check_rewards(rewards, group_ids, scale, singleton)
    dtype, rewards = rewards.dtype, rewards.detach()
    if rewards.element_size() < 4:
        rewards = rewards.float()  # squares of fp16 rewards overflow
    stats = group_statistics(rewards, group_ids)
    centred = rewards - stats.mean[stats.group_of]
    if scale == "group":
        centred = centred / (stats.std[stats.group_of] + eps)
    elif scale == "batch" and rewards.numel() > 1:
        centred = centred / (rewards.std() + eps)
    advantages = torch.where(stats.spread[stats.group_of], centred, 0)
    if singleton == "reward":
        advantages = torch.where(stats.size[stats.group_of] == 1, rewards, advantages)
    return advantages.to(dtype)


@dataclass(frozen=True, eq=False)
class GroupRewards:
    """Rewards in place of advantages: `linear_policy_loss` normalises them itself.

    Args:
        rewards: [B], one per response.
        group_ids: [B], which prompt a response answers.
        sequence_ids: [N], which response a token belongs to, in 0..B-1 (any value at masked rows).
        scale, singleton, eps: as in `group_advantages`.
    """

    rewards: Tensor
    group_ids: Tensor
    sequence_ids: Tensor
    scale: Scale = "group"
    singleton: Singleton = "reward"
    eps: float = 1e-6

    def per_sequence(self) -> Tensor:
        """[B] advantages of the responses, as `group_advantages` of rewards in fp32 or fp64."""
        return group_advantages(
            self.wide_rewards(), self.group_ids, scale=self.scale, singleton=self.singleton, eps=self.eps
        )

    def wide_rewards(self) -> Tensor:
        """[B] rewards in fp32, or fp64 where they are: an advantage must not be rounded to 16 bits."""
        rewards = self.rewards.detach()
        return rewards.float() if rewards.element_size() < 4 else rewards

    def per_token(self, valid: Tensor, per_sequence: Callable[[GroupRewards], Tensor] = per_sequence) -> Tensor:
        """[N] advantages in fp32 (fp64 for fp64 rewards); 0 where `valid` is False.

        `per_sequence` computes those of the responses, once: an engine may bring a kernel for it.

        Raises:
            ValueError: a sequence id of a valid token outside 0..B-1, a wrong shape, and what
                `check_rewards` refuses. TypeError: dtypes.
        """
        check_rewards(self.rewards, self.group_ids, self.scale, self.singleton)
        ids, count = self.sequence_ids, self.rewards.numel()
        if ids.shape != valid.shape:
            raise ValueError(
                f"GroupRewards.sequence_ids has shape {tuple(ids.shape)}; "
                f"it must be {tuple(valid.shape)}, one id a token."
            )
        if ids.is_floating_point() or ids.dtype == torch.bool:
            raise TypeError(f"GroupRewards.sequence_ids must be integers, got {ids.dtype}.")
        outside = valid & ((ids < 0) | (ids >= count))
        if outside.any():
            row = int(outside.nonzero()[0])
            raise ValueError(
                f"GroupRewards.sequence_ids[{row}] = {int(ids[row])} is outside 0..{count - 1} (B = {count} rewards)."
            )
        if count == 0:
            return self.wide_rewards().new_zeros(valid.shape)
        return torch.where(valid, per_sequence(self)[torch.where(valid, ids, 0).long()], 0)
