"""Subclasses of transformers' Trainer, as other libraries have them, with the loss in the head.

A Trainer of a library does this and that in a `compute_loss` of its own and leaves the loss to
the one it inherits. Ours is put in between, right above transformers' Trainer, so that all else of
the library's stays.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..head import Backend
from ..losses.objectives import LossFunction
from ..ops.validation import as_backend
from .batch import PolicyBatch, check_supervised, num_items_weights, shift
from .fuse import fuse_loss


def policy_trainer(base: Any, objective: LossFunction, backend: str | Backend = "auto") -> Any:
    """A subclass of `base` that trains on `objective`, computed in the model's forward.

    Equivalent to, in place of the loss that transformers' Trainer computes::

        logprobs = model(**inputs).logits[:, :-1].log_softmax(-1).gather(2, labels[:, 1:, None].clamp(min=0)).squeeze(2)
        loss = objective(logprobs, advantages=1)[labels[:, 1:] != -100].sum() / num_items_in_batch

    Router balancing is added as the model's own loss adds it. The objective's metrics are logged
    beside the loss, over all processes: nll, entropy, mean_c and what else it reports.

    Args:
        base: transformers' Trainer, or a subclass whose compute_loss ends in that of its parent.
        objective: a loss of the log-probs, and of advantages, which are 1 everywhere.
        backend: as in `linear_policy_loss`.

    Returns:
        A class, to be called as `base` is. It fuses the model that it is given.

    Raises:
        ValueError: the objective needs what a data set of responses has not. When the class is
            called: options of the trainer that would have no effect, by name.
        TypeError: when the class is called, a model that `fuse_loss` refuses.
        RuntimeError: at the first log, `base` computes its loss by itself.

    Cost: as of `fuse_loss`. In evaluation there are log-probs where logits would be.
    """
    from transformers import Trainer

    backend = as_backend(backend)
    check_supervised(objective)

    class PolicyLossTrainer(Trainer):
        model: Any

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            _refuse(self)
            fuse_loss(self.model, backend=backend)
            self._policy_sums: dict[str, dict[str, Tensor]] = {"train": {}, "eval": {}}  # of what is not logged yet

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            if self.compute_loss_func is not None:  # some set it when transformers' Trainer is there already
                _refuse(self)
            targets = shift(inputs["labels"])
            rest = {name: x for name, x in inputs.items() if name != "labels"}
            result = model(**rest, policy_batch=_batch(targets, objective, num_items_in_batch))
            _add(self._policy_sums["train" if self.model.training else "eval"], result.stats)
            loss = result.loss if result.aux_loss is None else result.loss + result.aux_loss
            if num_items_in_batch is not None and self.args.average_tokens_across_devices:
                loss = loss * self.accelerator.num_processes  # which wrappers divide by, and the count has them all
            return (loss, {"logprobs": result.logprobs}) if return_outputs else loss

        def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
            self._policy_sums["eval"].clear()  # of a prediction, which nobody logs
            return super().evaluation_loop(*args, **kwargs)

        def log(self, logs: dict[str, float], *rest: Any) -> None:
            _add_means(self, logs)
            super().log(logs, *rest)

    bases = (PolicyLossTrainer,) if base is Trainer else (base, PolicyLossTrainer)
    return type(base.__name__, bases, {"__module__": base.__module__, "__doc__": base.__doc__})


def _batch(targets: Tensor, objective: LossFunction, num_items: Any) -> PolicyBatch:
    """A mean over the targets of the step, or of this batch where nobody counted those."""
    count = (targets != -100).sum().clamp(min=1) if num_items is None else num_items
    ones = torch.ones(targets.shape, device=targets.device) if "advantages" in getattr(objective, "needs", ()) else None
    return PolicyBatch(targets, objective, ones, token_weights=num_items_weights(targets, count))


def _refuse(trainer: Any) -> None:
    args, found = trainer.args, []
    if args.label_smoothing_factor:
        found.append(f"label_smoothing_factor={args.label_smoothing_factor} (it needs whole logits)")
    if trainer.compute_loss_func is not None:
        found.append("compute_loss_func (the objective is in its place)")
    if trainer.compute_metrics is not None:
        found.append("compute_metrics (no logits are formed)")
    if getattr(args, "use_liger_kernel", False):
        found.append("use_liger_kernel=True (Liger puts layers of its own in the model that is fused here)")
    parallel = getattr(trainer.accelerator, "parallelism_config", None)
    if parallel is not None and (parallel.tp_enabled or parallel.cp_enabled or parallel.sp_enabled):
        found.append("parallelism_config (heads or sequences are cut over processes)")
    if found:
        raise ValueError(f"options of the trainer that the fused loss does not know: {'; '.join(found)}.")


def _add(sums: dict[str, Tensor], stats: dict[str, Tensor]) -> None:
    """Sums over active tokens, on the device: nothing waits for it."""
    count = stats["active_tokens"].float()
    found = {name: torch.where(count > 0, x.float() * count, 0.0) for name, x in stats.items()}
    for name, x in (found | {"tokens": count}).items():
        if name != "active_tokens":
            sums[name] = sums[name] + x if name in sums else x


def _add_means(trainer: Any, logs: dict[str, float]) -> None:
    """Put what was summed up since the last time beside a loss, over all processes."""
    evaluated = next((name for name in logs if name.startswith("eval_") and name.endswith("_loss")), None)
    if "loss" in logs:
        mode, prefix = "train", ""
    elif evaluated is not None:
        mode, prefix = "eval", evaluated.removesuffix("loss")
    else:
        return
    sums, trainer._policy_sums[mode] = trainer._policy_sums[mode], {}
    if not sums and mode == "train":
        raise RuntimeError(
            f"{type(trainer).__name__} computes its loss by itself: no batch has reached the fused loss, and the model "
            "is trained on another one. Override compute_loss in a subclass instead."
        )
    if not sums:  # what a callback evaluates
        return
    values = trainer.accelerator.reduce(torch.stack(list(sums.values())), reduction="sum")
    totals = dict(zip(sums, values.tolist(), strict=True))
    tokens = max(totals.pop("tokens"), 1.0)
    logs.update({f"{prefix}{name}": total / tokens for name, total in totals.items()})
    if f"{prefix}ppl" in logs:  # some take exp(loss) for the perplexity: the loss is the objective's
        logs[f"{prefix}ppl"] = math.exp(min(logs[f"{prefix}nll"], 700.0))
