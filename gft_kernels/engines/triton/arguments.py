"""Built-in objectives as constants and arguments of the kernels."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...losses import objectives
from ...losses.objectives import LossFunction, part
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
    if isinstance(objective, objectives.Sum):
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


_NO_TENSORS = {"weights_ptr": None, "advantages_ptr": None, "old_ptr": None, "ref_ptr": None, "unit_ptr": None}
SCORES_ONLY = OUTSIDE | _NO_TENSORS


def loss_arguments(plan: LossPlan, at: slice, unit: Tensor | None) -> dict[str, Any] | None:
    """What `finalise` needs for the chunk `at` of a plan; None where no kernel has the objective's formula."""
    constants = objective_constants(plan.objective)
    if constants is OUTSIDE:
        return None
    given = {name: None if x is None else x.contiguous() for name, x in part(plan.per_token, at).items()}
    return constants | {
        "weights_ptr": plan.weights[at].contiguous(),
        "advantages_ptr": given["advantages"],
        "old_ptr": given["old_logprobs"],
        "ref_ptr": given["ref_logprobs"],
        "unit_ptr": unit,
    }


def given_arguments(plan: LossPlan, at: slice, unit: Tensor | None, coefficients: Tensor) -> dict[str, Any]:
    """The same where the coefficients [K] are known already."""
    weights = plan.weights[at].contiguous()
    given = {"KIND": formulas.GIVEN.value, "weights_ptr": weights, "advantages_ptr": coefficients.contiguous()}
    return SCORES_ONLY | given | {"unit_ptr": unit}
