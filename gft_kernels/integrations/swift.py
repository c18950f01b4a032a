"""ms-swift: a policy loss for `--loss_type`, from a file that `--external_plugins` names."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..head import Backend
from ..losses.objectives import LossFunction
from ..ops.logits_policy_loss import logits_policy_loss
from ..ops.validation import as_backend
from .batch import check_supervised, num_items_weights, shift


def policy_loss(objective: LossFunction, backend: str | Backend = "auto") -> Callable[[Any, Any], SwiftLoss]:
    """An entry of ms-swift's `loss_map`, which makes a loss of (args, trainer).

    In a file of your own, with `--external_plugins that_file.py --loss_type gft`::

        from swift.loss import loss_map

        loss_map["gft"] = policy_loss(gft(tau=0.7))

    Args:
        objective: a loss of the log-probs, and of advantages, which are 1 everywhere.
        backend: as in `logits_policy_loss`.

    Raises:
        ValueError: the objective needs what a data set of responses has not. When ms-swift makes
            the loss: arguments that would have no effect, by name.
    """
    check_supervised(objective)
    return functools.partial(SwiftLoss, objective, as_backend(backend))


class SwiftLoss:
    """What ms-swift calls in place of its cross entropy."""

    def __init__(self, objective: LossFunction, backend: Backend, args: Any, trainer: Any) -> None:
        _refuse(args, trainer)
        self.objective, self.backend, self.trainer = objective, backend, trainer

    def __call__(
        self,
        outputs: Any,
        labels: Tensor,  # [B, T]
        *,
        num_items_in_batch: Any = None,
        loss_scale: Tensor | None = None,  # [B * T]
        **_: Any,
    ) -> Tensor:
        """The mean over the targets of the step, from `outputs.logits` [B, T, V].

        Equivalent to::

            targets = labels[:, 1:, None].clamp(min=0)
            logprobs = outputs.logits[:, :-1].log_softmax(-1).gather(2, targets).squeeze(2)  # [B, T-1]
            losses = objective(logprobs, advantages=1) * loss_scale.view_as(labels)[:, :-1]
            loss = losses[labels[:, 1:] != -100].sum() / num_items_in_batch

        Args:
            outputs: the model's, with logits of any float dtype.
            labels: on their own tokens, -100 where nothing is trained.
            num_items_in_batch: targets of the whole step. None counts those of this batch.
            loss_scale: a weight of every target, which ms-swift has shifted already.
        """
        logits = outputs.logits
        targets = F.pad(shift(labels), (0, 1), value=-100).flatten().to(logits.device)
        count = (targets != -100).sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        weights = num_items_weights(targets, count)
        if loss_scale is not None:
            weights = weights * loss_scale.flatten().to(weights)
        needs = getattr(self.objective, "needs", ())
        # Never in place: ms-swift reads the logits again, for the accuracy.
        result = logits_policy_loss(
            logits.flatten(0, 1),
            targets,
            torch.ones_like(weights) if "advantages" in needs else None,
            objective=self.objective,
            token_weights=weights,
            backend=self.backend,
        )
        self._log(result.stats)
        return result.loss

    def _log(self, stats: dict[str, Tensor]) -> None:
        """Among ms-swift's own metrics, which it averages over batches and processes."""
        metrics = self.trainer.custom_metrics["train" if self.trainer.model.training else "eval"]
        for name, x in stats.items():
            if name not in ("tokens", "active_tokens"):
                metrics[name].update(x.nan_to_num().unsqueeze(0))


def _refuse(args: Any, trainer: Any) -> None:
    found = []
    if any(kind.__name__ == "BaseMegatronTrainer" for kind in type(trainer).__mro__):
        found.append("megatron (logits are cut over processes)")
    if trainer.template.sequence_parallel_size > 1:
        found.append(f"sequence_parallel_size={trainer.template.sequence_parallel_size} (sequences are cut)")
    if args.enable_dft_loss:
        found.append("enable_dft_loss=True (give the objective dft())")
    if args.label_smoothing_factor:
        found.append(f"label_smoothing_factor={args.label_smoothing_factor} (the objective is in its place)")
    if trainer.task_type != "causal_lm":
        found.append(f"task_type={trainer.task_type!r} (the loss is that of a causal LM)")
    if found:
        raise ValueError(f"arguments that do not go with a policy loss: {'; '.join(found)}.")
