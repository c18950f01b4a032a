"""What a GRPOConfig says of the loss: objective, reduction, and what is not computed here."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...losses.objectives import LossFunction, Sum
from ...losses.ratios import cispo, grpo, kl
from ...losses.reductions import Reduction, token_weights
from ...ops.validation import token_parameters

# TRL's loss_type names a reduction; "cispo" an objective besides.
REDUCTIONS: dict[str, Reduction] = {
    "dapo": "token-mean",
    "cispo": "token-mean",
    "bnpo": "token-mean",
    "grpo": "seq-mean-token-mean",
    "dr_grpo": "seq-mean-token-sum-norm",
    "luspo": "seq-mean-token-sum",
}
OF_THE_GENERATION = ("dapo", "cispo")  # the mean is over the tokens of all steps of a generation, not of one step
# Options of other loss types (sapo_*, vespo_*) need no word here: their loss types are refused.
NOT_COMPUTED = {
    "top_entropy_quantile": (1.0, "it needs all entropies of the batch before any gradient"),
    "entropy_coef": (0.0, "the gradient of the entropy is not formed"),
    "use_adaptive_entropy": (False, "the gradient of the entropy is not formed"),
    "off_policy_mask_threshold": (None, "it drops sequences by their log-probs, which are not known before the loss"),
}
# Those of the head and the model, which an objective has nothing to do with.
NOT_FUSED = {
    "use_liger_kernel": (False, "Liger puts layers of its own in the model that is fused here"),
    "cast_lm_head_to_fp32": (False, "it replaces the forward of the head"),
}
# What the objective of a config consists of: an objective given besides would silence it.
OF_THE_OBJECTIVE = {"epsilon": 0.2, "epsilon_high": None, "delta": None, "importance_sampling_level": "token"}
LEVELS = ("token", "sequence")  # of the ratio


def objective_of(config: Any) -> LossFunction:
    """The objective that a GRPOConfig says.

    Equivalent to::

        objective = grpo(epsilon, epsilon_high or epsilon, dual_clip=delta)
        objective = cispo(1.0, epsilon_high - 1)  # loss_type="cispo": epsilon_high is the cap itself
        objective = objective + kl(beta, corrected=use_bias_correction_kl)  # beta != 0

    with sequence_ids=True in each that has a ratio, where importance_sampling_level="sequence": for
    a grpo that is `gspo`. The rest of loss_type is the reduction, a weight per token, which
    `GFTTrainer` applies.

    Raises:
        ValueError: an option changes the loss in a way that is not computed here. All of them are
            named at once.
    """
    refuse("loss", _unlike(config, NOT_COMPUTED) + _unlike_here(config))
    if config.loss_type == "cispo":
        objective: LossFunction = cispo(1.0, config.epsilon_high - 1.0, _of_sequences(config))
    else:
        objective = grpo(config.epsilon, _upper(config), config.delta, _of_sequences(config))
    return with_penalty(objective, config)


def with_penalty(objective: Any, config: Any) -> LossFunction:
    """The objective, with TRL's KL where the config has a beta."""
    if config.beta == 0.0:
        return objective
    corrected = config.use_bias_correction_kl
    return Sum(objective, kl(config.beta, corrected=corrected, sequence_ids=corrected and _of_sequences(config)))


def _of_sequences(config: Any) -> bool:
    return config.importance_sampling_level == "sequence"


def objective_beside(config: Any, objective: LossFunction) -> LossFunction:
    """An objective of the caller's own, and the config's KL.

    Raises:
        ValueError: an option that says something of the loss would have no effect beside it.
    """
    check_loss_function(objective)
    found = _unlike(config, NOT_COMPUTED) + _unknown_reduction(config)
    found += [
        f"{name}={getattr(config, name)!r} (objective={objective!r} is in its place)"
        for name, default in OF_THE_OBJECTIVE.items()
        if getattr(config, name) != default
    ]
    if config.loss_type == "cispo":
        found.append(f"loss_type='cispo' (objective={objective!r} is in its place; its reduction is 'dapo')")
    if "ref_logprobs" in getattr(objective, "needs", ()):
        found.append(f"objective={objective!r} (its KL comes of the config: set beta, use_bias_correction_kl)")
    refuse("loss", found)
    return with_penalty(objective, config)


def check_loss_function(objective: Any) -> None:
    """Refuse what is no objective before the first rollout is made for nothing.

    Raises:
        TypeError: a name, a class, or anything else that cannot be called.
        ValueError: a parameter of every token, whose place in a batch nobody knows beforehand.
    """
    given = {name: x for name, x in token_parameters(objective).items() if x is not None}
    for name, value in given.items():
        raise ValueError(
            f"objective has a {name} of shape {tuple(value.shape)}, and batches are made anew in every step: leave it "
            "out, or give a number where it is tau (GFTTrainer's rectify='given' has it at given tokens alone)."
        )


def refuse_head_options(config: Any) -> None:
    """Options that a fused head has no room for, of any of TRL's configs.

    Raises:
        ValueError: one of them is set.
    """
    refuse("head", _unlike(config, NOT_FUSED))


def refuse(subject: str, options: list[str]) -> None:
    if options:
        raise ValueError(f"options of the config that the fused {subject} does not know: {'; '.join(options)}.")


def weights_of(
    config: Any, loss_mask: Tensor, generation_tokens: Tensor, accumulated: float, processes: int, training: bool
) -> Tensor:
    """Weight per token of a micro-batch [B, C] under TRL's loss_type, 0 where masked.

    Args:
        loss_mask: [B, C], 1 where a token is trained on.
        generation_tokens: TRL's num_items_in_batch, the tokens of a whole generation batch, over
            all processes and all its steps.
        accumulated: micro-batches of this optimiser step.
        processes: data-parallel processes, over which gradients are averaged.
        training: False in evaluation, where a batch stands for itself.
    """
    count = None
    share = accumulated if training else 1.0
    if config.loss_type in OF_THE_GENERATION:
        count = generation_tokens
        share = (share / config.steps_per_generation if training else 1.0) / processes
    rows = len(loss_mask)
    mask = loss_mask.bool()
    weights = token_weights(
        REDUCTIONS[config.loss_type],
        mask.flatten(),
        torch.arange(rows, device=mask.device)[:, None].expand_as(mask).flatten(),
        num_tokens=count,
        num_sequences=rows,
        max_length=config.max_completion_length,
    )
    return weights.view_as(mask) / share


def _upper(config: Any) -> float:
    return config.epsilon if config.epsilon_high is None else config.epsilon_high


def _unlike(config: Any, table: dict[str, tuple[Any, str]]) -> list[str]:
    """Options that are not at the only value known here, with the reason."""
    values = {name: getattr(config, name, only) for name, (only, _) in table.items()}
    return [f"{name}={value!r} ({table[name][1]})" for name, value in values.items() if value != table[name][0]]


def _unknown_reduction(config: Any) -> list[str]:
    if config.loss_type in REDUCTIONS:
        return []
    return [f"loss_type={config.loss_type!r} (known are {', '.join(REDUCTIONS)})"]


def _unlike_here(config: Any) -> list[str]:
    """What depends on more than one option."""
    found = _unknown_reduction(config)
    if config.importance_sampling_level not in LEVELS:
        found.append(f"importance_sampling_level={config.importance_sampling_level!r} (known are {', '.join(LEVELS)})")
    if config.loss_type == "cispo":
        if config.epsilon_high is None or config.epsilon_high < 1:
            found.append(
                f"epsilon_high={config.epsilon_high!r} with loss_type='cispo' (there it is the largest ratio itself, 1 "
                "or more, such as 5.0)"
            )
    elif config.delta is not None and config.delta < 1 + _upper(config):
        found.append(f"delta={config.delta!r} (it bounds the ratio from above, beyond 1 + epsilon_high, or is None)")
    return found
