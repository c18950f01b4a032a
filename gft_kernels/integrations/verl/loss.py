"""An objective as a policy loss of verl: losses by the objective, everything around them verl's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from verl.trainer.ppo.core_algos import agg_loss
from verl.utils.torch_functional import masked_mean

from ...losses.objectives import LossFunction, by_sequence
from ...ops.validation import token_parameters
from .config import objective_under

PolicyLossFn = Callable[..., tuple[Tensor, dict[str, Any]]]
# verl has names of its own for these.
NAMES = {"clip_fraction": "pg_clipfrac", "dual_clip_fraction": "pg_clipfrac_lower"}


def policy_loss(objective: LossFunction) -> PolicyLossFn:
    """A policy loss of verl whose losses of tokens are those of `objective`.

    Equivalent to, in verl's own words::

        losses = objective(log_prob, advantages=advantages, old_logprobs=old_log_prob)  # (bs, L)
        losses = losses * rollout_is_weights  # where verl has them
        loss = agg_loss(losses, response_mask, loss_agg_mode, **config.global_batch_info)

    verl adds its entropy bonus (entropy_coeff) and its KL (use_kl_loss) beside it. Masked tokens
    may hold anything, NaN too.

    Register it under a name of your own, in a module that VERL_USE_EXTERNAL_MODULES names::

        register_policy_loss("cispo-wide")(policy_loss(cispo(1.0, 4.0)))

    Args:
        objective: such as gft(0.7), grpo(0.2, 0.28, dual_clip=3), or a function of your own. Its
            numbers count; clip ratios that a config sets besides are refused.

    Returns:
        A function of verl's signature that gives the loss and metrics: verl's names (actor/ppo_kl,
        actor/pg_clipfrac, actor/pg_clipfrac_lower), actor/nll, and what the objective reports.

    Raises:
        TypeError: the objective is a class or cannot be called.
        ValueError: it needs log-probs of a reference, has a tau for every token or ratios of whole
            sequences; at the call, an option of the config would have no effect.

    Cost: as verl's own loss; one wait for the device, for the metrics.
    """
    _check(objective)

    def loss(
        old_log_prob: Tensor,
        log_prob: Tensor,
        advantages: Tensor,
        response_mask: Tensor,
        loss_agg_mode: str = "token-mean",
        config: Any = None,
        rollout_is_weights: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        chosen = objective_under(config, objective)
        mask = response_mask.bool()
        logprobs, old, given = (_unmasked(x, mask) for x in (log_prob, old_log_prob, advantages))
        per_token = {"advantages": given.flatten(), "old_logprobs": old.flatten(), "ref_logprobs": None}
        losses = torch.where(mask, chosen(logprobs.flatten(), **per_token).view_as(mask), 0.0)
        if rollout_is_weights is not None:
            losses = losses * _unmasked(rollout_is_weights, mask)
        total = agg_loss(losses, response_mask, loss_agg_mode, **config.global_batch_info)
        return total, _metrics(chosen, logprobs.detach(), per_token, mask)

    return loss


def _unmasked(values: Tensor, mask: Tensor) -> Tensor:
    """The values in fp32 or wider, 0 where masked: padding may hold NaN, and 0 * NaN is NaN."""
    return torch.where(mask, values.to(torch.promote_types(values.dtype, torch.float32)), 0.0)


@torch.no_grad()
def _metrics(objective: Any, logprobs: Tensor, per_token: dict[str, Any], mask: Tensor) -> dict[str, float]:
    """Means over the unmasked tokens, 0 where there are none, as verl's own."""
    # Bounded as verl bounds it.
    vectors = {"ppo_kl": (per_token["old_logprobs"] - logprobs.flatten()).clamp(-20, 20), "nll": -logprobs.flatten()}
    reported = objective.metrics(logprobs.flatten(), **per_token) if hasattr(objective, "metrics") else {}
    vectors |= {NAMES.get(name, name): vector for name, vector in reported.items()}
    means = torch.stack([masked_mean(vector.view_as(mask), mask) for vector in vectors.values()])
    return {f"actor/{name}": mean for name, mean in zip(vectors, means.tolist(), strict=True)}


def _check(objective: Any) -> None:
    """Refuse what is no objective of verl before a rollout is made for nothing."""
    of_tokens = token_parameters(objective)  # which refuses what is no loss function
    if "ref_logprobs" in getattr(objective, "needs", ()):
        raise ValueError(
            f"objective = {objective!r} needs log-probs of a reference, which verl keeps to itself: set "
            "actor_rollout_ref.actor.use_kl_loss=True, kl_loss_coef and kl_loss_type."
        )
    if by_sequence(objective):
        raise ValueError(
            f"objective = {objective!r} has a ratio for every sequence, and verl's policy losses are given tokens: use "
            "verl's own loss_mode=gspo."
        )
    for name, value in of_tokens.items():
        assert value is not None
        raise ValueError(
            f"objective has a {name} of shape {tuple(value.shape)}, and batches are made anew in every step: leave "
            "it out, or give a number where it is tau."
        )
