"""Built-in objectives and group rewards as constants and arguments of the kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...losses import objectives
from ...losses.advantages import GroupRewards
from ...losses.objectives import LossFunction
from ..contract import LossPlan
from . import formulas

_KINDS = {
    objectives.SFT: formulas.SFT,
    objectives.DFT: formulas.DFT,
    objectives.GFT: formulas.GFT,
    objectives.Reinforce: formulas.REINFORCE,
    objectives.GRPO: formulas.GRPO,
    objectives.CISPO: formulas.CISPO,
}
_SCALES = {"group": formulas.GROUP_SCALE, "batch": formulas.BATCH_SCALE, "none": formulas.NO_SCALE}
OUTSIDE = {
    "KIND": formulas.OUTSIDE.value,
    "TAU": 0.0,
    "CLIP_LOW": 0.0,
    "CLIP_HIGH": 0.0,
    "DUAL_CLIP": None,
    "BETA": 0.0,
}


def objective_constants(objective: LossFunction) -> dict[str, Any]:
    """Constants of `formulas.objective_terms` for a built-in objective, or one plus kl(); OUTSIDE
    for any other function.
    """
    base: Any = objective
    penalty: Any = None
    if isinstance(objective, objectives._Sum):
        first, second = objective.parts
        base, penalty = (first, second) if type(second) is objectives.KL else (second, first)
        if type(penalty) is not objectives.KL:
            return OUTSIDE
    if type(base) not in _KINDS:
        return OUTSIDE
    return {
        "KIND": _KINDS[type(base)].value,
        "TAU": float(getattr(base, "tau", 0.0)),
        "CLIP_LOW": float(getattr(base, "clip_low", 0.0)),
        "CLIP_HIGH": float(getattr(base, "clip_high", 0.0)),
        "DUAL_CLIP": getattr(base, "dual_clip", None),
        "BETA": 0.0 if penalty is None else float(penalty.beta),
    }


_UNGROUPED = {
    "sequence_ptr": None,
    "rewards_ptr": None,
    "group_ids_ptr": None,
    "B": 0,
    "REWARD_SCALE": formulas.NO_SCALE.value,
    "KEEP_SINGLE": False,
    "EPS": 0.0,
}
_NO_TENSORS = {"weights_ptr": None, "advantages_ptr": None, "old_ptr": None, "ref_ptr": None, "unit_ptr": None}
SCORES_ONLY = OUTSIDE | _UNGROUPED | _NO_TENSORS


def _reward_arguments(groups: GroupRewards, rows: Tensor) -> dict[str, Any]:
    """Arguments of `formulas.group_advantage` for rows [K] of the batch."""
    rewards = groups.rewards.detach()
    return {
        "sequence_ptr": groups.sequence_ids[rows].contiguous(),
        "rewards_ptr": (rewards.float() if rewards.element_size() < 4 else rewards).contiguous(),
        "group_ids_ptr": groups.group_ids.contiguous(),
        "B": len(rewards),
        "REWARD_SCALE": _SCALES[groups.scale].value,
        "KEEP_SINGLE": groups.singleton == "reward",
        "EPS": float(groups.eps),
    }


def loss_arguments(plan: LossPlan, at: slice, unit: Tensor | None) -> dict[str, Any] | None:
    """What `finalise` needs for the chunk `at` of a plan; None where no kernel has the objective's
    formula.
    """
    constants = objective_constants(plan.objective)
    if constants is OUTSIDE:
        return None
    given = {name: None if x is None else x[at].contiguous() for name, x in plan.per_token.items()}
    rewards = _UNGROUPED
    if plan.groups is not None:
        every = torch.arange(len(plan.targets), device=plan.targets.device) if plan.rows is None else plan.rows
        rewards = _reward_arguments(plan.groups, every[at])
    return (
        constants
        | rewards
        | {
            "weights_ptr": plan.weights[at].contiguous(),
            "advantages_ptr": given["advantages"],
            "old_ptr": given["old_logprobs"],
            "ref_ptr": given["ref_logprobs"],
            "unit_ptr": unit,
        }
    )


def given_arguments(plan: LossPlan, at: slice, unit: Tensor | None, coefficients: Tensor) -> dict[str, Any]:
    """The same where the coefficients [K] are known already."""
    weights = plan.weights[at].contiguous()
    given = {
        "KIND": formulas.GIVEN.value,
        "weights_ptr": weights,
        "advantages_ptr": coefficients.contiguous(),
        "unit_ptr": unit,
    }
    return SCORES_ONLY | given
