"""`GFTTrainer`: TRL's GRPOTrainer with a fused loss and with given responses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from trl import GRPOTrainer

from ...head import Backend
from ...losses.objectives import GFT, LossFunction
from ...ops.validation import as_backend
from ..batch import PolicyBatch
from .fusing import fuse_trainer
from .given import GivenResponses, check_given
from .metrics import log_metrics
from .objective import objective_beside, objective_of, refuse_head_options, weights_of

VISION = (
    "pixel_values",
    "image_grid_thw",
    "pixel_attention_mask",
    "image_sizes",
    "token_type_ids",
    "mm_token_type_ids",
)


class GFTTrainer(GRPOTrainer):
    """GRPOTrainer with a fused loss: the same training, other objectives, given responses.

    Everything else is TRL's: rollouts, rewards, advantages, the old and reference log-probs, the
    schedule, the metrics' names. `loss_type` is the reduction.

    Args:
        model, reward_funcs, args, and all others: as of GRPOTrainer.
        objective: the loss of a token, such as gft(0.7). None takes the one that `args` say
            (`objective_of`). The KL of `args` (beta) is added to either.
        given: `given_responses(dataset, tokenizer)`. They take the first places of each group in
            training, are scored by the reward functions and share the group's mean and spread.
        rectify: "all" rectifies every token, as the paper does. "given" rectifies those of given
            responses only: tau is 0 for the policy's own.
        backend: as in `linear_policy_loss`.

    Raises:
        ValueError: options that would change nothing here, or change what is not computed here, by
            name; given responses that do not fit in the groups or in max_completion_length.
        TypeError: a model that cannot be fused, as `fuse_loss` says.
    """

    model: Any
    objective: LossFunction

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: Any = None,
        *rest: Any,
        objective: LossFunction | None = None,
        given: GivenResponses | None = None,
        rectify: Literal["all", "given"] = "all",
        backend: str | Backend = "auto",
        **kwargs: Any,
    ) -> None:
        backend = as_backend(backend)
        if given is not None and not isinstance(given, GivenResponses):
            raise TypeError(f"given is {type(given).__name__}: give given_responses(dataset, tokenizer).")
        if args is not None:  # before a model is loaded for nothing
            _objective(args, objective)
            refuse_head_options(args)
        super().__init__(model, reward_funcs, args, *rest, **kwargs)
        self.objective = _objective(self.args, objective)
        self.given, self.rectify = given, rectify
        self._given_rows: list[dict[str, Any]] = []
        if self._is_vlm:
            raise ValueError(
                "processing_class is that of a vision-language model: the fused loss passes text alone on."
            )
        _check_rectify(rectify, objective, given)
        if given is not None:
            check_given(self, given)
        fuse_trainer(self, self.temperature, backend)

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        seen = [name for name in VISION if inputs.get(name) is not None]
        if seen:
            raise ValueError(f"the batch holds {', '.join(seen)}: the fused loss passes text alone on.")
        training = self.model.training
        accumulated = self.current_gradient_accumulation_steps if training else 1
        mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)
        weights = weights_of(
            self.args, mask, inputs["num_items_in_batch"], accumulated, self.accelerator.num_processes, training
        )
        router = {"output_router_logits": True} if self.aux_loss_enabled else {}
        with self.accelerator.autocast():
            result = model(
                input_ids=torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1),
                attention_mask=torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1),
                use_cache=False,
                policy_batch=self._policy_batch(inputs, mask, weights),
                **router,
            )
        log_metrics(self, result, inputs, mask)
        if not self.aux_loss_enabled:
            return result.loss
        self._log("aux_loss", self.accelerator.gather_for_metrics(result.aux_loss.detach() / self.router_aux_loss_coef))
        return result.loss + result.aux_loss / accumulated

    def _policy_batch(self, inputs: dict[str, Any], mask: Tensor, weights: Tensor) -> PolicyBatch:
        """The batch [B, T-1] of a micro-batch of completions [B, C]."""
        before = inputs["prompt_ids"].shape[1] - 1
        advantages = inputs["advantages"]
        advantages = (advantages[:, None] if advantages.ndim == 1 else advantages).expand_as(mask)
        if self.use_vllm and self.vllm_importance_sampling_correction:
            # Every objective here is linear in A > 0 and in A < 0, and the KL must stay as it is.
            advantages = advantages * inputs["importance_sampling_ratio"]

        def after_prompt(x: Tensor | None) -> Tensor | None:
            return None if x is None else F.pad(x, (before, 0))

        targets = inputs["completion_ids"].masked_fill(mask == 0, -100)
        objective = self.objective
        if self.rectify == "given":
            is_given = inputs.get("is_given", advantages.new_zeros(len(mask), dtype=torch.bool))  # none in evaluation
            objective = _rectify_some(objective, F.pad(is_given[:, None].expand_as(mask), (before, 0)))
        return PolicyBatch(
            F.pad(targets, (before, 0), value=-100),
            objective,
            after_prompt(advantages),
            after_prompt(weights),
            after_prompt(inputs.get("old_per_token_logps")),
            after_prompt(inputs.get("ref_per_token_logps")),
        )

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if self.given is None or not self.model.training:
            return super()._generate_and_score_completions(inputs)
        self._given_rows = inputs
        try:
            output = super()._generate_and_score_completions(inputs)
        finally:
            self._given_rows = []
        is_given = [place < self.given.count for place in self._places(len(inputs))]
        return output | {"is_given": torch.tensor(is_given, device=self.accelerator.device)}

    def _places(self, rows: int) -> list[int]:
        """Each row's place in its group."""
        first = self.accelerator.process_index * rows
        return [(first + i) % self.num_generations for i in range(rows)]

    def _generate_single_turn(
        self, prompt_ids: Any, images: Any, multimodal_fields: Any, num_generations: int, *rest: Any, **kwargs: Any
    ) -> Any:
        generate = super()._generate_single_turn
        if not self._given_rows or self.given is None:
            return generate(prompt_ids, images, multimodal_fields, num_generations, *rest, **kwargs)
        count, places = self.given.count, self._places(len(prompt_ids))
        own = [i for i, place in enumerate(places) if place >= count]
        prompts = [prompt_ids[i] for i in own]
        completions: list[Any] = []
        logprobs: list[Any] | None = [] if self.use_vllm else None
        if own:
            completions, logprobs = generate(prompts, None, {}, num_generations - count, *rest, **kwargs)
        sampled = iter(completions)
        given = [
            self.given.tokens(row, place) if place < count else None
            for row, place in zip(self._given_rows, places, strict=True)
        ]
        merged = [next(sampled) if ids is None else ids for ids in given]
        if logprobs is None:
            return merged, None
        # None stands for "not sampled": TRL makes the ratio of such a token 1.
        scores = iter(logprobs)
        return merged, [next(scores) if ids is None else [None] * len(ids) for ids in given]

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        rewards = super()._calculate_rewards(*args, **kwargs)
        if self._given_rows and self.given is not None:
            total = (rewards * self.reward_weights.to(rewards.device)).nansum(1).view(-1, self.num_generations)
            self._log("reward/given", total[:, : self.given.count])
            self._log("reward/own", total[:, self.given.count :])
        return rewards

    def _log(self, name: str, values: Tensor) -> None:
        self._metrics["train" if self.model.training else "eval"][name].append(values.float().mean().item())


def _objective(config: Any, objective: LossFunction | None) -> LossFunction:
    return objective_of(config) if objective is None else objective_beside(config, objective)


def _rectify_some(objective: Any, is_given: Tensor) -> LossFunction:
    """The objective with its tau at given tokens alone."""
    if isinstance(objective, GFT):
        return replace(objective, tau=torch.where(is_given, objective.tau, 0.0))
    first, second = objective.parts
    return _rectify_some(first, is_given) + second


def _check_rectify(rectify: str, objective: Any, given: GivenResponses | None) -> None:
    if rectify not in ("all", "given"):
        raise ValueError(f"rectify = {rectify!r}: choose all or given.")
    if rectify == "given" and (given is None or not isinstance(objective, GFT)):
        raise ValueError(
            f"rectify='given' with objective={objective!r}, given={given!r}: it is for gft(tau) and given=."
        )
