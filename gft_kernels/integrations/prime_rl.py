"""prime-rl: the loss of its rl component, `[trainer.loss] type = "custom"`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..losses.objectives import Objective
from .named import named_objective


def policy_loss(inputs: Any, objective: str = "gft", **numbers: float) -> Any:
    """The sum of an objective's losses over the member tokens of one sequence.

    prime-rl divides it by the tokens of the whole step. In its TOML file::

        [trainer.loss]
        type = "custom"
        import_path = "gft_kernels.integrations.prime_rl.policy_loss"
        kwargs = { objective = "gft", tau = 0.7 }

    Equivalent to::

        losses = gft(tau)(trainer_logprobs, advantages=advantages, old_logprobs=inference_logprobs)
        loss = (losses * loss_weights)[loss_mask].sum()

    Args:
        inputs: prime-rl's LossInputs of one sequence, [seq] each.
        objective: sft, dft, gft, reinforce, grpo or cispo. The ratio of the last two is to the
            policy that sampled (inference_logprobs); the others take no notice of it.
        numbers: the objective's own, such as tau or clip_low.

    Returns:
        prime-rl's LossOutputs. Its metrics are means over the member tokens, 0 where there is none.

    Raises:
        ValueError, TypeError: an objective or a number that there is not.

    Cost: O(seq). The log-probs are prime-rl's own; its fused output layer computes them without
    logits.
    """
    from prime_rl.trainer.rl.loss import LossOutputs

    function = named_objective(objective, numbers)
    mask = inputs.loss_mask  # values outside it may be anything, so they are left out before they are used
    logprobs = inputs.trainer_logprobs[mask].float()
    per_token = {"advantages": inputs.advantages, "old_logprobs": inputs.inference_logprobs}
    if inputs.ref_logprobs is not None:
        per_token["ref_logprobs"] = inputs.ref_logprobs
    given = {name: x[mask].float() for name, x in per_token.items()}
    losses = function(logprobs, **given)
    if inputs.loss_weights is not None:
        losses = losses * inputs.loss_weights[mask]
    return LossOutputs(loss=losses.sum(), metrics=_metrics(function, logprobs.detach(), given))


def _metrics(objective: Objective, logprobs: Tensor, given: dict[str, Tensor]) -> dict[str, Tensor]:
    vectors = {"nll": -logprobs} | objective.metrics(logprobs, **given)
    return {name: x.sum() / max(len(logprobs), 1) for name, x in vectors.items()}
