"""`PolicySFTTrainer`: TRL's SFTTrainer with a policy loss on given responses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from trl import SFTTrainer

from ...head import Backend
from ...losses.objectives import DFT, LossFunction, dft, sft
from ...ops.validation import as_backend
from ..batch import PolicyBatch, check_supervised, num_items_weights, shift
from .fusing import fuse_trainer
from .metrics import means_of
from .objective import check_loss_function, refuse, refuse_head_options


class PolicySFTTrainer(SFTTrainer):
    """SFTTrainer with a fused loss: the same data, collator and schedule, other objectives.

    The metric mean_token_accuracy is not logged: nothing looks for the likeliest token.

    Args:
        model, args, and all others: as of SFTTrainer.
        objective: the loss of a token, sft(), dft(), gft(tau) with A = 1, or a function of the
            log-probs alone. None takes the one that `args.loss_type` says.
        backend: as in `linear_policy_loss`.

    Raises:
        ValueError: options that would change nothing here, by name.
        TypeError: a model that cannot be fused, as `fuse_loss` says.
    """

    model: Any
    objective: LossFunction

    def __init__(
        self,
        model: Any,
        args: Any = None,
        *rest: Any,
        objective: LossFunction | None = None,
        backend: str | Backend = "auto",
        **kwargs: Any,
    ) -> None:
        backend = as_backend(backend)
        super().__init__(model, args, *rest, **kwargs)
        self.objective = _objective(self.args, objective)
        refuse_head_options(self.args)
        refuse("loss", _unknown(self))
        fuse_trainer(self, 1.0, backend)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        labels = inputs["labels"]
        rest = {name: x for name, x in inputs.items() if name != "labels"} | {"use_cache": False}
        if self.aux_loss_enabled:
            rest["output_router_logits"] = True
        targets = shift(labels)
        count = (targets != -100).sum() if num_items_in_batch is None else num_items_in_batch
        weights = num_items_weights(targets, torch.as_tensor(count, device=targets.device).clamp(min=1))
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            weights = weights * (self.accelerator.num_processes // self.get_tp_size())
        advantages = weights.new_ones(targets.shape) if "advantages" in getattr(self.objective, "needs", ()) else None
        batch = PolicyBatch(targets, self.objective, advantages, token_weights=weights)
        result = model(**rest, policy_batch=batch)
        loss = result.loss
        if self.aux_loss_enabled:
            steps = self.current_gradient_accumulation_steps if num_items_in_batch is not None else 1
            loss = loss + result.aux_loss / steps
        self._log_loss(result, inputs)
        if not return_outputs:
            return loss
        with torch.no_grad():  # whoever wants outputs wants logits, which the loss has not formed
            return loss, model(**rest)

    def _log_loss(self, result: Any, inputs: dict[str, Any]) -> None:
        """TRL's names, and what the objective reports."""
        mode = "train" if self.model.training else "eval"
        found = self._metrics[mode]
        for name, value in means_of(self, result.stats).items():
            found[name].append(value)
        if mode == "train":
            self._total_train_tokens += self._tokens_read(inputs) // self._tp_size
        found["num_tokens"] = [self._total_train_tokens]
        if self.aux_loss_enabled:
            aux_loss = result.aux_loss.detach() / self.router_aux_loss_coef
            found["aux_loss"].append(self.accelerator.gather_for_metrics(aux_loss).mean().item())

    def _tokens_read(self, inputs: dict[str, Any]) -> int:
        """Tokens of all processes, masked ones too. Batches without padding have no mask."""
        mask = inputs.get("attention_mask")
        local: Tensor = torch.tensor(inputs["input_ids"].numel()) if mask is None else mask.sum()
        return self.accelerator.gather_for_metrics(local.to(inputs["input_ids"].device)).sum().item()


def _objective(config: Any, objective: LossFunction | None) -> LossFunction:
    if objective is None:
        return dft() if config.loss_type == "dft" else sft()
    check_loss_function(objective)
    if config.loss_type == "dft" and not isinstance(objective, DFT):
        refuse("loss", [f"loss_type='dft' (objective={objective!r} is in its place)"])
    check_supervised(objective)
    return objective


def _unknown(trainer: Any) -> list[str]:
    args, found = trainer.args, []
    if args.label_smoothing_factor:
        found.append(f"label_smoothing_factor={args.label_smoothing_factor} (it needs whole logits)")
    if trainer.compute_loss_func is not None:
        found.append("compute_loss_func (objective is in its place)")
    if trainer._is_vlm:
        found.append("processing_class (that of a vision-language model; text alone is passed on)")
    parallel = trainer.accelerator.parallelism_config
    if parallel is not None and (parallel.cp_enabled or parallel.sp_enabled):
        found.append("parallelism_config (sequences are cut over processes, and targets with them)")
    return found
