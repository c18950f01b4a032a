"""Objectives: pure functions of per-token scalars, loss_t = f(log p_t, A_t, old_t, ref_t).

Here stand what an objective is and those of p alone; ratios.py has those of a ratio to another
policy.

An objective is any callable `f(logprobs, **per_token) -> loss [K]` whose element t depends on row t
alone. per_token holds `advantages`, `old_logprobs` and `ref_logprobs`, [K] each, None where the
caller gave none. The coefficients d loss_t / d logp_t are taken by autograd on [K], so a formula is
written once, here.

Objectives add up: `gft(0.7) + kl(0.01)`. One with sequence_ids looks at a row's whole sequence
(`by_sequence`), which the ops then hand it at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

LossFunction = Callable[..., Tensor]
PER_TOKEN = ("advantages", "old_logprobs", "ref_logprobs")  # what an objective may ask for, in this order
# With the parameters of objectives that may have a value of their own for every token.
VECTORS = (*PER_TOKEN, "tau", "sequence_ids", "importance_weights")
PerToken = dict[str, Tensor | None]  # by those names, [N] or [K] each; None where the caller gave none


def part(per_token: PerToken, rows: slice | Tensor) -> PerToken:
    """The per-token inputs of some rows."""
    return {name: None if x is None else x[rows] for name, x in per_token.items()}


def times(coefficient: Tensor, logprobs: Tensor) -> Tensor:
    """coefficient * logprobs, with 0 * -inf = 0: an impossible token may have coefficient 0."""
    return torch.where(coefficient == 0, torch.zeros_like(logprobs), coefficient * logprobs)


def rectification(logprobs: Tensor, tau: float | Tensor) -> Tensor:
    """C(p) = p if p < tau else 1, detached (arXiv:2604.14258 Eq. 18). tau is a number or [K]."""
    p = logprobs.detach().exp()
    return torch.where(p < tau, p, torch.ones_like(p))


def check_numbers(objective: Objective, **bounds: tuple[float, float]) -> None:
    """Refuse numbers that are NaN or outside (lowest, highest). The ops look at tensors."""
    for name, (low, high) in bounds.items():
        value = getattr(objective, name)
        if not isinstance(value, Tensor) and not low <= value <= high:
            said = f"{type(objective).__name__}.{name} = {value}"
            raise ValueError(f"{said}: give a number from {low:g} to {high:g}.")


class Objective:
    """Base of the built-in objectives: a call returns losses [K], differentiable."""

    needs: ClassVar[tuple[str, ...]] = ()  # per-token inputs that must be given
    zero_at_zero_advantage: ClassVar[bool] = False  # True: rows with A = 0 may be skipped
    rowwise: ClassVar[bool] = True  # mixes no rows but those of a sequence (`by_sequence`); functions are checked

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """Losses [K] of (logprobs [K], advantages=, old_logprobs=, ref_logprobs=)."""
        raise NotImplementedError

    def metrics(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Vectors [K] of the same arguments, whose means are reported beside the loss."""
        return {}

    def __add__(self, other: LossFunction) -> Objective:
        return Sum(self, other)

    def __radd__(self, other: LossFunction) -> Objective:
        return Sum(other, self) if callable(other) else NotImplemented


@dataclass(frozen=True)
class SFT(Objective):
    """Supervised fine-tuning, equivalent to `-logprobs`. Needs no advantages."""

    def __call__(self, logprobs: Tensor, **_: Any) -> Tensor:
        return -logprobs


@dataclass(frozen=True)
class DFT(Objective):
    """Dynamic fine-tuning: GFT with A = 1 and tau = 1. Needs no advantages.

    Equivalent to `-logprobs.exp().detach() * logprobs`.

    Source: arXiv:2508.05629.
    """

    def __call__(self, logprobs: Tensor, **_: Any) -> Tensor:
        return -times(logprobs.detach().exp(), logprobs)

    def metrics(self, logprobs: Tensor, **_: Any) -> dict[str, Tensor]:
        return {"mean_c": logprobs.exp()}


@dataclass(frozen=True)
class GFT(Objective):
    """Group fine-tuning: the advantage times the rectified coefficient C(p) times -log p.

    Equivalent to::

        p = logprobs.exp().detach()
        loss = -advantages * torch.where(p >= tau, 1.0, p) * logprobs

    Args:
        tau: the p from which a token keeps its whole gradient. tau <= 0 is group REINFORCE (the
            paper's "w/o DCR"), and tau > 1 weights every token by its probability. A tensor [N] has
            a tau for every token, such as 0.7 for given responses and 0 for the policy's own.

    Raises:
        ValueError: tau is NaN.

    Source: arXiv:2604.14258 Eq. 21.
    """

    tau: float | Tensor = 0.7
    needs: ClassVar = ("advantages",)
    zero_at_zero_advantage: ClassVar = True

    def __post_init__(self) -> None:
        check_numbers(self, tau=(-math.inf, math.inf))

    def __call__(self, logprobs: Tensor, *, advantages: Tensor, tau: Tensor | None = None, **_: Any) -> Tensor:
        return -times(advantages * rectification(logprobs, self._bound(tau)), logprobs)

    def metrics(self, logprobs: Tensor, *, tau: Tensor | None = None, **_: Any) -> dict[str, Tensor]:
        bound = self._bound(tau)
        c = rectification(logprobs, bound)
        return {"mean_c": c, "rectified_fraction": (logprobs.exp() < bound).to(c.dtype)}

    def _bound(self, tau: Tensor | None) -> float | Tensor:
        """The taus of the rows at hand, where this objective has one for every token."""
        return tau if tau is not None and isinstance(self.tau, Tensor) and self.tau.ndim else self.tau


@dataclass(frozen=True)
class Reinforce(Objective):
    """REINFORCE, equivalent to `-advantages * logprobs`."""

    needs: ClassVar = ("advantages",)
    zero_at_zero_advantage: ClassVar = True

    def __call__(self, logprobs: Tensor, *, advantages: Tensor, **_: Any) -> Tensor:
        return -times(advantages, logprobs)


class Sum(Objective):
    """The sum of two objectives. A row may be skipped only where both allow it."""

    def __init__(self, first: LossFunction, second: LossFunction) -> None:
        self.parts = (first, second)
        needs = dict.fromkeys(name for term in self.parts for name in getattr(term, "needs", ()))
        self.needs = tuple(needs)  # type: ignore[misc]
        self.zero_at_zero_advantage = self._all("zero_at_zero_advantage")  # type: ignore[misc]
        self.rowwise = self._all("rowwise")  # type: ignore[misc]

    def _all(self, name: str) -> bool:
        return all(getattr(term, name, False) for term in self.parts)

    def __call__(self, logprobs: Tensor, **per_token: Any) -> Tensor:
        first, second = (losses_of(term, logprobs, per_token) for term in self.parts)
        return first + second

    def metrics(self, logprobs: Tensor, **per_token: Any) -> dict[str, Tensor]:
        return {
            k: v
            for term in self.parts
            if isinstance(term, Objective)
            for k, v in term.metrics(logprobs, **per_token).items()
        }

    def __repr__(self) -> str:
        return " + ".join(map(repr, self.parts))


@dataclass(frozen=True)
class Weighted(Objective):
    """An objective times a weight of every token [N], through which no gradient flows.

    A token of weight 0 counts nothing, and a built-in objective's rows of weight 0 may be skipped.
    """

    objective: LossFunction
    importance_weights: Tensor

    def __post_init__(self) -> None:
        for name in ("needs", "zero_at_zero_advantage", "rowwise"):
            object.__setattr__(self, name, getattr(self.objective, name, getattr(_Unknown, name)))

    def __call__(self, logprobs: Tensor, *, importance_weights: Tensor | None = None, **per_token: Any) -> Tensor:
        weights = self.importance_weights if importance_weights is None else importance_weights
        return times(weights, losses_of(self.objective, logprobs, per_token))

    def metrics(self, logprobs: Tensor, **per_token: Any) -> dict[str, Tensor]:
        return self.objective.metrics(logprobs, **per_token) if isinstance(self.objective, Objective) else {}


class _Unknown:
    """What is known of a caller's function."""

    needs, zero_at_zero_advantage, rowwise = (), False, False


sft, dft, gft, reinforce = SFT, DFT, GFT, Reinforce


def losses_of(objective: LossFunction, logprobs: Tensor, per_token: PerToken) -> Tensor:
    """The objective's losses [K]. A function is handed what it expects, and no parameters."""
    if not isinstance(objective, Objective):
        per_token = {name: x for name, x in per_token.items() if name in PER_TOKEN}
    return objective(logprobs, **per_token)


def terms(objective: LossFunction) -> Iterator[LossFunction]:
    """What an objective is the sum of, without weights."""
    if isinstance(objective, Sum):
        for part_of_it in objective.parts:
            yield from terms(part_of_it)
    elif isinstance(objective, Weighted):
        yield from terms(objective.objective)
    else:
        yield objective


def with_terms(objective: LossFunction, change: Callable[[Any], LossFunction]) -> LossFunction:
    """The same sum and weights, every term changed."""
    if isinstance(objective, Sum):
        return Sum(*(with_terms(term, change) for term in objective.parts))
    if isinstance(objective, Weighted):
        return replace(objective, objective=with_terms(objective.objective, change))
    return change(objective)


def by_sequence(objective: LossFunction) -> bool:
    """Whether the loss of a row depends on the other rows of its sequence."""
    return any(getattr(term, "sequence_ids", False) is not False for term in terms(objective))


def with_sequences(objective: LossFunction, sequence_ids: Tensor) -> LossFunction:
    """The objective with these ids [N], where it takes those of the call and no term brings any."""
    if any(isinstance(getattr(term, "sequence_ids", None), Tensor) for term in terms(objective)):
        return objective

    def filled(term: Any) -> LossFunction:
        return replace(term, sequence_ids=sequence_ids) if getattr(term, "sequence_ids", None) is True else term

    return with_terms(objective, filled)


def losses_and_coefficients(objective: LossFunction, logprobs: Tensor, per_token: PerToken) -> tuple[Tensor, Tensor]:
    """loss_t and d loss_t / d logp_t of any objective, [K] each and detached.

    Raises:
        ValueError: the objective's result is not one loss a row that depends on the log-probs.
    """
    with torch.inference_mode(False), torch.enable_grad():
        # Clones, because autograd cannot record tensors made in inference_mode.
        leaf = logprobs.detach().clone().requires_grad_()
        per_token = {name: x.clone() if x is not None and x.is_inference() else x for name, x in per_token.items()}
        try:
            losses = objective(leaf, **per_token)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, IndexError) as error:
            raise ValueError(
                f"objective {objective!r} failed on {len(leaf)} rows: {error}. It is called on chunks of the active "
                "rows, so per-row data must reach it as advantages, old_logprobs or ref_logprobs."
            ) from error
        if not isinstance(losses, Tensor) or losses.shape != leaf.shape:
            got = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            raise ValueError(
                f"objective {objective!r} returned {got}; it must return one loss a row, shape {tuple(leaf.shape)}. "
                "Reductions are given as token_weights, not inside the objective."
            )
        if not losses.requires_grad:
            raise ValueError(
                f"objective {objective!r} returned a loss that does not depend on its logprobs: nothing could learn."
            )
        (coefficients,) = torch.autograd.grad(losses.sum(), leaf)
    return losses.detach(), coefficients
