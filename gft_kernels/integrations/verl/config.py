"""What verl's config says of the loss: tau, and options that would have no effect here."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from verl.workers.config import ActorConfig, PolicyLossConfig

from ...losses.objectives import GFT, LossFunction

NAME = "gft"  # of the policy loss and of the advantage estimator

# Options of verl's other losses: beside an objective they would change nothing.
OF_OTHER_LOSSES: dict[Any, tuple[str, ...]] = {
    ActorConfig: ("clip_ratio", "clip_ratio_low", "clip_ratio_high", "clip_ratio_c", "tau_pos", "tau_neg"),
    PolicyLossConfig: ("clip_cov_ratio", "clip_cov_lb", "clip_cov_ub", "kl_cov_ratio", "ppo_kl_coef", "dro_beta"),
}
# Options of verl's other estimators, with the only value that changes nothing.
OF_OTHER_ESTIMATORS = {
    "gamma": 1.0,
    "lam": 1.0,
    "use_pf_ppo": False,
    "gdpo_reward_keys": None,
    "gdpo_reward_weights": None,
}


@dataclass
class GFTLossConfig(PolicyLossConfig):
    """verl's policy_loss section with room for tau.

    On the command line::

        actor_rollout_ref.actor.policy_loss.loss_mode=gft
        actor_rollout_ref.actor.policy_loss._target_=gft_kernels.integrations.verl.GFTLossConfig
        +actor_rollout_ref.actor.policy_loss.tau=0.5

    Args:
        tau: the p from which a token keeps its whole gradient, as in `gft(tau)`. It takes the place
            of the tau that `install` got.

    Raises:
        ValueError: loss_mode is another loss, of which tau is no part, or tau is NaN.
        TypeError: tau is not a number.
    """

    tau: float = 0.7

    def __post_init__(self) -> None:
        if self.loss_mode != NAME:
            raise ValueError(f"policy_loss.tau={self.tau} with loss_mode={self.loss_mode!r}: set loss_mode={NAME}.")
        if not isinstance(self.tau, int | float):
            raise TypeError(f"policy_loss.tau={self.tau!r}: give a number, such as 0.7.")
        GFT(self.tau)


def objective_under(config: Any, objective: LossFunction) -> LossFunction:
    """The objective with the numbers that an actor's config has for it.

    Raises:
        ValueError: an option of the loss would have no effect. All of them are named at once.
    """
    if config is None:
        raise ValueError("verl gave no config to the policy loss: pass config=, an ActorConfig.")
    section = config.policy_loss
    found = _changed(config, ActorConfig, "", objective) + _changed(
        section, PolicyLossConfig, "policy_loss.", objective
    )
    correction = section.get("rollout_correction", None)
    if correction is not None and correction.get("bypass_mode", False):
        found.append("policy_loss.rollout_correction.bypass_mode=True (verl computes it in its own loss alone)")
    has_tau = isinstance(section, GFTLossConfig)
    if has_tau and not isinstance(objective, GFT):
        found.append(f"policy_loss.tau={section.tau} (objective={objective!r} has none)")
    refuse("actor", found)
    return replace(objective, tau=section.tau) if has_tau and isinstance(objective, GFT) else objective


def check_algorithm(config: Any) -> None:
    """Options of verl's algorithm section that group advantages leave aside.

    Raises:
        ValueError: one of them is set. All of them are named at once.
    """
    found = [
        f"{name}={config.get(name)!r} (group advantages have no use for it)"
        for name, only in OF_OTHER_ESTIMATORS.items()
        if config.get(name, only) != only
    ]
    correction = config.get("rollout_correction", None)
    if correction and correction.get("bypass_mode", False):
        # Elsewhere verl computes weights and rejections before the loss, which gets them.
        found += [
            f"rollout_correction.{name}={correction.get(name)!r} with bypass_mode=True (verl applies it in "
            "loss_mode=bypass_mode alone)"
            for name in ("rollout_is", "rollout_rs")
            if correction.get(name, None) is not None
        ]
    refuse("algorithm", found)


def refuse(section: str, options: list[str]) -> None:
    if options:
        raise ValueError(f"options of the {section} that would have no effect: {'; '.join(options)}.")


def _changed(section: Any, of: Any, prefix: str, objective: LossFunction) -> list[str]:
    """Options of other losses that are not at the default that verl gives them."""
    defaults = {field.name: field.default for field in fields(of)}
    values = {name: section.get(name, defaults[name]) for name in OF_OTHER_LOSSES[of] if name in defaults}
    return [
        f"{prefix}{name}={value!r} (objective={objective!r} is in its place)"
        for name, value in values.items()
        if value != defaults[name]
    ]
