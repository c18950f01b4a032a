"""What a fused model is called with: a batch of responses, shaped as the model's inputs are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..head import Backend
from ..losses.advantages import GroupRewards
from ..losses.objectives import LossFunction, Sum, Weighted, terms, with_sequences, with_terms
from ..losses.ratios import KL
from .closed import changed, closed

OF_SEQUENCES = ("advantages", "importance_weights")  # [B] too, where all tokens of a sequence have the same


@closed  # wrappers would cast log-probs and weights to the model's 16 bits
@dataclass(frozen=True, eq=False)
class PolicyBatch:
    """The loss that a fused model is to compute on the tokens of this call (`fuse_loss`).

    Column t belongs to position t of the input, whose hidden state predicts the token at t + 1:
    targets are `input_ids[:, 1:]` with what is not trained on replaced by ignore_index.

    Args:
        targets: [B, T-1] integers; head.ignore_index (-100) marks masked tokens.
        objective: as in `linear_policy_loss`. None asks for log-probs and entropies instead. A tau
            of every token is [B, T-1] too. A row is the sequence of gspo(), unless it has
            sequence_ids [B, T-1] of its own, or the advantages have.
        advantages: [B, T-1], or [B] where a sequence has one, or `GroupRewards` whose sequence_ids
            are [B, T-1].
        token_weights, old_logprobs, ref_logprobs: [B, T-1], as in `linear_policy_loss`.
        importance_weights: [B, T-1], or [B] where a sequence has one, 0 or more: the trainer's
            probability over that of the sampler, where an engine with other numerics sampled. A
            token's loss is multiplied by it, and no gradient flows through it. The penalty of kl()
            is not: TRL and verl leave it out too. Truncate them before:
            `(trainer_logprobs - sampler_logprobs).exp().clamp(max=3.0)` is TRL's "token_truncate".
        temperature, backend: of this call, where they are not those of `fuse_loss`.
    """

    targets: Tensor
    objective: LossFunction | None = None
    advantages: Tensor | GroupRewards | None = None
    token_weights: Tensor | None = None
    old_logprobs: Tensor | None = None
    ref_logprobs: Tensor | None = None
    importance_weights: Tensor | None = None
    temperature: float | None = None
    backend: str | Backend | None = None

    @property
    def rows_are_sequences(self) -> bool:
        """Whether the objective takes every row for a sequence, because nothing brings ids."""
        if self.objective is None or isinstance(self.advantages, GroupRewards):
            return False
        ids = [getattr(term, "sequence_ids", False) for term in terms(self.objective)]
        return any(x is True for x in ids) and not any(isinstance(x, Tensor) for x in ids)

    def rows(self, ignore_index: int) -> PolicyBatch:
        """The batch on [B * T] rows, those of every last position masked.

        The hidden states then need no copy without their last position.
        """
        names = ("token_weights", "old_logprobs", "ref_logprobs", "importance_weights")
        given: Any = {name: self._row(name) for name in names}
        advantages: Any = self.advantages
        if isinstance(advantages, GroupRewards):
            ids = _padded("sequence_ids", advantages.sequence_ids, self.targets, 0)
            advantages = replace(advantages, sequence_ids=ids)
        else:
            advantages = self._row("advantages")
        targets = _padded("targets", self.targets, self.targets, ignore_index)
        objective = self.objective
        if objective is not None:
            objective = _on_rows(objective, self.targets, self.rows_are_sequences)
            weights = given["importance_weights"]
            objective = objective if weights is None else _weighted(objective, weights)
        return changed(self, targets=targets, objective=objective, advantages=advantages, **given)

    def _row(self, name: str) -> Tensor | None:
        x = getattr(self, name)
        if name in OF_SEQUENCES and isinstance(x, Tensor) and x.shape == self.targets.shape[:1]:
            x = x[:, None].expand_as(self.targets)
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


def _on_rows(objective: LossFunction, like: Tensor, rows_are_sequences: bool) -> LossFunction:
    """The objective, its values for every token laid out as the rows are."""
    done: list[tuple[Tensor, Tensor]] = []  # one tensor stays one: terms of a sum may share it

    def flat(name: str, x: Tensor) -> Tensor:
        for given, rows in done:
            if given is x:
                return rows
        done.append((x, _padded(f"objective.{name}", x, like, 0)))
        return done[-1][1]

    def laid_out(term: Any) -> LossFunction:
        given = {name: getattr(term, name, None) for name in ("tau", "sequence_ids")}
        found = {name: flat(name, x) for name, x in given.items() if isinstance(x, Tensor) and x.ndim == 2}
        return replace(term, **found) if found else term

    objective = with_terms(objective, laid_out)
    if rows_are_sequences:
        row = torch.arange(len(like), device=like.device)[:, None].expand_as(like)
        objective = with_sequences(objective, _padded("targets", row, like, 0))
    return objective


def _weighted(objective: LossFunction, weights: Tensor) -> LossFunction:
    """The objective times the weights, its KL as it was."""
    if isinstance(objective, Sum):
        return Sum(*(_weighted(term, weights) for term in objective.parts))
    return objective if isinstance(objective, KL) else Weighted(objective, weights)


def check_supervised(objective: LossFunction) -> None:
    """Refuse an objective that needs what a data set of responses has not.

    Raises:
        ValueError: it needs log-probs of another policy.
    """
    missing = [name for name in getattr(objective, "needs", ()) if name != "advantages"]
    if missing:
        raise ValueError(f"objective={objective!r} needs {', '.join(missing)}, which a data set of responses has not.")


def shift(labels: Tensor, ignore_index: int = -100) -> Tensor:  # [B, T] -> [B, T-1]
    """Targets of labels that lie on their own tokens, as data collators make them."""
    return labels[:, 1:].masked_fill(labels[:, 1:] < 0, ignore_index)


def num_items_weights(targets: Tensor, num_items: int | Tensor, ignore_index: int = -100) -> Tensor:  # [B, T-1]
    """Token weights 1 / num_items, the count that transformers' Trainer hands to a loss.

    It counts the targets of all micro-batches of a step. Data-parallel wrappers average over R
    ranks: where it counts all of theirs too, multiply by R.
    """
    return (targets != ignore_index).to(torch.float32) / num_items
