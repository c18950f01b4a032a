"""Group advantages as an advantage estimator of verl."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...losses.advantages import group_advantages
from .config import check_algorithm


@torch.no_grad()
def advantages(
    token_level_rewards: Tensor,  # (bs, L)
    response_mask: Tensor,  # (bs, L)
    index: Any = None,  # [bs]
    config: Any = None,
) -> tuple[Tensor, Tensor]:  # (bs, L) each
    """verl's estimator "gft": the group advantage of every response, on each of its tokens.

    Equivalent to, for the rewards R of the responses to one prompt::

        R = token_level_rewards.sum(-1)
        (R - R.mean()) / (R.std() + 1e-6) * response_mask

    but exactly 0 where all rewards of a group are equal. A group of one keeps its reward.

    Args:
        token_level_rewards: rewards, in verl the whole of a response's on its last token.
        response_mask: 1 where a token is trained on.
        index: whose response it is: equal entries are one group (verl's uid).
        config: verl's algorithm section. norm_adv_by_std_in_grpo=False leaves the division out.

    Returns:
        The advantages twice, as verl's own grpo does: as advantages and as returns.

    Raises:
        ValueError: no index, a reward that is NaN or infinite, or an option that group advantages
            have no use for (gamma, lam, use_pf_ppo, gdpo_reward_keys).
    """
    if index is None:
        raise ValueError("group advantages need to know which prompt a response answers: the batch has no 'uid'.")
    options = {} if config is None else config
    check_algorithm(options)
    _, group_ids = np.unique(np.asarray(index).astype(str), return_inverse=True)
    found = group_advantages(
        token_level_rewards.sum(-1),
        torch.as_tensor(group_ids, device=token_level_rewards.device),
        scale="group" if options.get("norm_adv_by_std_in_grpo", True) else "none",
    )
    per_token = found[:, None] * response_mask
    return per_token, per_token
