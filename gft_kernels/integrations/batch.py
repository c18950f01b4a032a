"""What a fused model is called with: a batch of responses, shaped as the model's inputs are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..head import Backend
from ..losses.advantages import GroupRewards
from ..losses.objectives import LossFunction, Sum
from .closed import changed, closed


@closed  # wrappers would cast log-probs and weights to the model's 16 bits
@dataclass(frozen=True, eq=False)
class PolicyBatch:
    """The loss that a fused model is to compute on the tokens of this call (`fuse_loss`).

    Column t belongs to position t of the input, whose hidden state predicts the token at t + 1:
    targets are `input_ids[:, 1:]` with what is not trained on replaced by ignore_index.

    Args:
        targets: [B, T-1] integers; head.ignore_index (-100) marks masked tokens.
        objective: as in `linear_policy_loss`. None asks for log-probs and entropies instead. A tau
            of every token is [B, T-1] too.
        advantages: [B, T-1], or [B] where a sequence has one, or `GroupRewards` whose sequence_ids
            are [B, T-1].
        token_weights, old_logprobs, ref_logprobs: [B, T-1], as in `linear_policy_loss`.
        temperature, backend: of this call, where they are not those of `fuse_loss`.
    """

    targets: Tensor
    objective: LossFunction | None = None
    advantages: Tensor | GroupRewards | None = None
    token_weights: Tensor | None = None
    old_logprobs: Tensor | None = None
    ref_logprobs: Tensor | None = None
    temperature: float | None = None
    backend: str | Backend | None = None

    def rows(self, ignore_index: int) -> PolicyBatch:
        """The batch on [B * T] rows, those of every last position masked.

        The hidden states then need no copy without their last position.
        """
        given: Any = {name: self._row(name) for name in ("token_weights", "old_logprobs", "ref_logprobs")}
        advantages: Any = self.advantages
        if isinstance(advantages, GroupRewards):
            ids = _padded("sequence_ids", advantages.sequence_ids, self.targets, 0)
            advantages = replace(advantages, sequence_ids=ids)
        elif isinstance(advantages, Tensor) and advantages.ndim == 1:
            advantages = _padded("advantages", advantages[:, None].expand_as(self.targets), self.targets, 0)
        else:
            advantages = self._row("advantages")
        targets = _padded("targets", self.targets, self.targets, ignore_index)
        objective = None if self.objective is None else _on_rows(self.objective, self.targets)
        return changed(self, targets=targets, objective=objective, advantages=advantages, **given)

    def _row(self, name: str) -> Tensor | None:
        x = getattr(self, name)
        return None if x is None else _padded(name, x, self.targets, 0)


def _padded(name: str, x: Tensor, like: Tensor, value: int) -> Tensor:  # [B * T]
    """A column for the last position, then one row a position."""
    if not isinstance(x, Tensor) or x.shape != like.shape or x.ndim != 2:
        shape = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(
            f"PolicyBatch.{name} has shape {shape}; it must be [B, T-1], as targets {tuple(like.shape)}: column t "
            "belongs to position t of the input."
        )
    return F.pad(x, (0, 1), value=value).flatten()


def _on_rows(objective: LossFunction, like: Tensor) -> LossFunction:
    """The objective, a tau of every token laid out as the rows are."""
    if isinstance(objective, Sum):
        return Sum(*(_on_rows(term, like) for term in objective.parts))
    tau: Any = getattr(objective, "tau", None)
    if isinstance(tau, Tensor) and tau.ndim == 2:
        return replace(objective, tau=_padded("objective.tau", tau, like, 0))  # type: ignore[type-var]
    return objective


def shift(labels: Tensor, ignore_index: int = -100) -> Tensor:  # [B, T] -> [B, T-1]
    """Targets of labels that lie on their own tokens, as data collators make them."""
    return labels[:, 1:].masked_fill(labels[:, 1:] < 0, ignore_index)


def num_items_weights(targets: Tensor, num_items: int | Tensor, ignore_index: int = -100) -> Tensor:  # [B, T-1]
    """Token weights 1 / num_items, the count that transformers' Trainer hands to a loss.

    It counts the targets of all micro-batches of a step. Data-parallel wrappers average over R
    ranks: where it counts all of theirs too, multiply by R.
    """
    return (targets != ignore_index).to(torch.float32) / num_items
