"""Group-normalised advantages (group advantage learning, arXiv:2604.14258 section 3).

    A_k = (R_k - mean(R)) / (std(R) + eps)

mean and std (with K - 1) go over the K responses of one prompt's group.
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
    """Statistics of each group [G], and the group of each response."""

    group_of: Tensor  # [B] index of a response's group
    size: Tensor
    mean: Tensor
    std: Tensor
    spread: Tensor  # bool: two rewards of the group differ


def check_rewards(rewards: Tensor, group_ids: Tensor, scale: str, singleton: str) -> None:
    """Refuse rewards that no advantage can be taken from. Waits for the device.

    Raises:
        ValueError: shapes differ, a reward is NaN or infinite, scale or singleton is unknown.
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
    """Size, mean, unbiased std and spread of every group, by a mask [G, B] of who belongs where.

    There are no atomic additions, so the bits are the same in every run.
    """
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

    Equivalent to, for the rewards R of each group::

        (R - R.mean()) / (R.std() + eps)

    but exactly 0 where all rewards of a group are equal. In fp32 the mean rounds, and the line
    above would give noise over eps.

    Args:
        rewards: [B] floating point, finite.
        group_ids: [B] integers. Equal ids are one group, in any order.
        scale: divide by the std of the "group", by that of the whole "batch", or not at all
            ("none", Dr.GRPO).
        singleton: a group of one response keeps its "reward", or gets "zero". With "reward", SFT is
            the case K = 1, R = 1.
        eps: added to the std, in units of the rewards.

    Returns:
        [B] advantages in the dtype of rewards, not differentiable.

    Raises:
        ValueError: shapes, non-finite rewards, unknown scale or singleton.
        TypeError: dtypes.

    Cost: a few [G, B] tensors, and one wait for the device to count the groups.

    Source: arXiv:2604.14258 section 3; Dr.GRPO arXiv:2503.20783 for scale="none".
    """
    check_rewards(rewards, group_ids, scale, singleton)
    return _normalised(rewards, group_ids, scale, singleton, eps)


def _normalised(rewards: Tensor, group_ids: Tensor, scale: Scale, singleton: Singleton, eps: float) -> Tensor:
    """`group_advantages` of rewards that have been checked."""
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

    Equivalent to, for the unmasked tokens::

        given = rewards.detach().float()  # fp64 stays fp64
        advantages = group_advantages(given, group_ids, scale=scale, singleton=singleton, eps=eps)
        advantages = advantages[sequence_ids]  # [N]

    Args:
        rewards: [B] floating point, one per response.
        group_ids: [B] integers, which prompt a response answers.
        sequence_ids: [N] integers in 0..B-1, which response a token belongs to. Masked rows may
            hold any value.
        scale, singleton, eps: as in `group_advantages`.

    Raises:
        ValueError: at the call, what `group_advantages` refuses, and sequence_ids out of range.
        TypeError: at the call, dtypes.

    Source: arXiv:2604.14258 section 3.
    """

    rewards: Tensor
    group_ids: Tensor
    sequence_ids: Tensor
    scale: Scale = "group"
    singleton: Singleton = "reward"
    eps: float = 1e-6

    def per_sequence(self) -> Tensor:
        """[B] advantages in fp32 or fp64, of rewards that `per_token` has checked."""
        return _normalised(self.wide_rewards(), self.group_ids, self.scale, self.singleton, self.eps)

    def wide_rewards(self) -> Tensor:
        """[B] rewards in fp32 or wider, because an advantage must not be rounded to 16 bits."""
        rewards = self.rewards.detach()
        return rewards.float() if rewards.element_size() < 4 else rewards

    def per_token(self, valid: Tensor, per_sequence: Callable[[GroupRewards], Tensor]) -> Tensor:
        """[N] advantages in fp32 (fp64 for fp64 rewards), 0 where `valid` is False.

        `per_sequence` computes those of the responses, once: the engine's `group_advantages`.

        Raises:
            ValueError: a valid token's sequence id is outside 0..B-1, a shape or device is wrong,
                an advantage is not finite, or `check_rewards` refuses.
            TypeError: dtypes.
        """
        ids, count = self.sequence_ids, self.rewards.numel()
        for name in ("rewards", "group_ids", "sequence_ids"):
            if (device := getattr(self, name).device) != valid.device:
                raise ValueError(
                    f"GroupRewards.{name} is on {device} but targets are on {valid.device}: move them to one device."
                )
        check_rewards(self.rewards, self.group_ids, self.scale, self.singleton)
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
        advantages = per_sequence(self)
        bad = ~torch.isfinite(advantages)
        if bad.any():
            k = int(bad.nonzero()[0])
            raise ValueError(
                f"the advantage of rewards[{k}] = {self.rewards[k].item()} is not finite ({advantages[k].item()}, "
                f"eps = {self.eps}): scale the rewards down."
            )
        return torch.where(valid, advantages[torch.where(valid, ids, 0).long()], 0)
