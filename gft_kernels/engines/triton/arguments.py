"""Built-in objectives as constants and arguments of the kernels."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from ...losses import objectives, ratios
from ...losses.objectives import LossFunction, part
from ..contract import LossPlan
from . import formulas

_KINDS = {
    objectives.SFT: formulas.SFT,
    objectives.DFT: formulas.DFT,
    objectives.GFT: formulas.GFT,
    objectives.Reinforce: formulas.REINFORCE,
    ratios.GRPO: formulas.GRPO,
    ratios.CISPO: formulas.CISPO,
}
OUTSIDE = {
    "KIND": formulas.OUTSIDE.value,
    "tau": 0.0,
    "clip_low": 0.0,
    "clip_high": 0.0,
    "dual_clip": math.inf,
    "beta": 0.0,
    "kl_clamp": math.inf,
    "CORRECTED": False,
}


def objective_numbers(objective: LossFunction) -> dict[str, Any]:
    """What `objective_terms` takes for a built-in objective, alone or with kl(); else OUTSIDE.

    KIND and CORRECTED are compiled for. The rest are numbers at run time, because schedules change
    them.
    """
    base: Any = objective
    penalty: Any = None
    if isinstance(objective, objectives.Sum):
        first, second = objective.parts
        base, penalty = (first, second) if type(second) is ratios.KL else (second, first)
        if type(penalty) is not ratios.KL:
            return OUTSIDE
    if type(base) not in _KINDS:
        return OUTSIDE
    tau = getattr(base, "tau", 0.0)
    return {
        "KIND": _KINDS[type(base)].value,
        "tau": 0.0 if isinstance(tau, Tensor) else float(tau),
        "clip_low": float(getattr(base, "clip_low", 0.0)),
        "clip_high": float(getattr(base, "clip_high", 0.0)),
        "dual_clip": _or_infinite(getattr(base, "dual_clip", None)),
        "beta": 0.0 if penalty is None else float(penalty.beta),
        "kl_clamp": _or_infinite(getattr(penalty, "clamp", None)),
        "CORRECTED": bool(getattr(penalty, "corrected", False)),
    }


def _or_infinite(bound: float | None) -> float:
    return math.inf if bound is None else float(bound)


_POINTERS = ("weights_ptr", "advantages_ptr", "old_ptr", "ref_ptr", "tau_ptr", "unit_ptr")
_NO_TENSORS: dict[str, Any] = dict.fromkeys(_POINTERS)
SCORES_ONLY = OUTSIDE | _NO_TENSORS


def loss_arguments(plan: LossPlan, at: slice, unit: Tensor | None) -> dict[str, Any] | None:
    """What `finalise` needs for the chunk `at`, or None for an objective without a formula."""
    numbers = objective_numbers(plan.objective)
    if numbers is OUTSIDE:
        return None
    given = {name: None if x is None else x.contiguous() for name, x in part(plan.per_token, at).items()}
    penalised = "ref_logprobs" in getattr(plan.objective, "needs", ())
    return numbers | {
        "weights_ptr": plan.weights[at].contiguous(),
        "advantages_ptr": given["advantages"],
        "old_ptr": given["old_logprobs"],
        "ref_ptr": given["ref_logprobs"] if penalised else None,
        "tau_ptr": given.get("tau"),
        "unit_ptr": unit,
    }


def given_arguments(plan: LossPlan, at: slice, unit: Tensor | None, coefficients: Tensor) -> dict[str, Any]:
    """What `finalise` needs where the coefficients [K] are known already."""
    weights = plan.weights[at].contiguous()
    given = {"KIND": formulas.GIVEN.value, "weights_ptr": weights, "advantages_ptr": coefficients.contiguous()}
    return SCORES_ONLY | given | {"unit_ptr": unit}
