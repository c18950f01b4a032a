"""Objectives: pure functions of per-token scalars, loss_t = f(log p_t, A_t, old_t, ref_t).

An objective is any callable `f(logprobs, **per_token) -> loss [K]` whose element t depends on row t
alone. per_token holds `advantages`, `old_logprobs` and `ref_logprobs`, [K] each, None where the
caller gave none. The coefficients d loss_t / d logp_t are taken by autograd on [K], so a formula is
written once, here.

Objectives add up: `gft(0.7) + kl(0.01)`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

LossFunction = Callable[..., Tensor]
PER_TOKEN = ("advantages", "old_logprobs", "ref_logprobs")  # what an objective may ask for, in this order
PerToken = dict[str, Tensor | None]  # by those names, [N] or [K] each; None where the caller gave none


def part(per_token: PerToken, rows: slice | Tensor) -> PerToken:
    """The per-token inputs of some rows."""
    return {name: None if x is None else x[rows] for name, x in per_token.items()}


def _times(coefficient: Tensor, logprobs: Tensor) -> Tensor:
    """coefficient * logprobs, with 0 * -inf = 0: an impossible token may have coefficient 0."""
    return torch.where(coefficient == 0, torch.zeros_like(logprobs), coefficient * logprobs)


def rectification(logprobs: Tensor, tau: float) -> Tensor:
    """C(p) = p if p < tau else 1, detached (arXiv:2604.14258 Eq. 18)."""
    p = logprobs.detach().exp()
    return torch.where(p < tau, p, torch.ones_like(p))


def _log_ratio(logprobs: Tensor, old_logprobs: Tensor | None) -> Tensor:
    """log pi / pi_old, finite at log p = -inf. Without old log-probs the ratio is 1."""
    lowest = torch.finfo(torch.float32).min / 4
    logprobs = logprobs.clamp(min=lowest)
    return logprobs - (logprobs.detach() if old_logprobs is None else old_logprobs.clamp(min=lowest))


def _ratio(logprobs: Tensor, old_logprobs: Tensor | None) -> Tensor:
    """pi / pi_old, flat outside e^-60..e^60, because an infinite ratio times 0 would be NaN."""
    return _log_ratio(logprobs, old_logprobs).clamp(-60, 60).exp()


def _k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """e^d - d - 1 with d = ref - log p. Value and slope stop at e^60, so that fp32 holds them."""
    delta = -_log_ratio(logprobs, ref_logprobs)
    bounded = delta.detach().clamp(max=60) + (delta - delta.detach())
    return bounded.exp() - delta - 1


class Objective:
    """Base of the built-in objectives: a call returns losses [K], differentiable."""

    needs: ClassVar[tuple[str, ...]] = ()  # per-token inputs that must be given
    zero_at_zero_advantage: ClassVar[bool] = False  # True: rows with A = 0 may be skipped
    rowwise: ClassVar[bool] = True  # a row's loss depends on that row alone; a function is checked for it

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
        return -_times(logprobs.detach().exp(), logprobs)

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
            paper's "w/o DCR"), and tau > 1 weights every token by its probability.

    Source: arXiv:2604.14258 Eq. 21.
    """

    tau: float = 0.7
    needs: ClassVar = ("advantages",)
    zero_at_zero_advantage: ClassVar = True

    def __call__(self, logprobs: Tensor, *, advantages: Tensor, **_: Any) -> Tensor:
        return -_times(advantages * rectification(logprobs, self.tau), logprobs)

    def metrics(self, logprobs: Tensor, **_: Any) -> dict[str, Tensor]:
        c = rectification(logprobs, self.tau)
        return {"mean_c": c, "rectified_fraction": (logprobs.exp() < self.tau).to(c.dtype)}


@dataclass(frozen=True)
class Reinforce(Objective):
    """REINFORCE, equivalent to `-advantages * logprobs`."""

    needs: ClassVar = ("advantages",)
    zero_at_zero_advantage: ClassVar = True

    def __call__(self, logprobs: Tensor, *, advantages: Tensor, **_: Any) -> Tensor:
        return -_times(advantages, logprobs)


@dataclass(frozen=True)
class GRPO(Objective):
    """The clipped ratio of PPO and GRPO. Without old_logprobs the ratio is 1.

    Equivalent to::

        ratio = (logprobs - old_logprobs).exp()
        clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
        loss = -torch.minimum(ratio * advantages, clipped * advantages)

    Args:
        clip_low, clip_high: how far below and above 1 the ratio counts. clip_high = 0.28 is DAPO's.
        dual_clip: bounds the loss of tokens with A < 0 at -dual_clip * A, for example 3. None is
            off.

    Source: arXiv:1707.06347 (PPO), arXiv:2402.03300 (GRPO), arXiv:2503.14476 (DAPO).
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    needs: ClassVar = ("advantages",)
    zero_at_zero_advantage: ClassVar = True

    def __call__(self, logprobs: Tensor, *, advantages: Tensor, old_logprobs: Tensor | None = None, **_: Any) -> Tensor:
        ratio = _ratio(logprobs, old_logprobs)
        clipped = ratio.clamp(1 - self.clip_low, 1 + self.clip_high)
        loss = torch.maximum(-ratio * advantages, -clipped * advantages)
        if self.dual_clip is not None:
            loss = torch.where(advantages < 0, torch.minimum(loss, -self.dual_clip * advantages), loss)
        return loss

    def metrics(
        self, logprobs: Tensor, *, advantages: Tensor, old_logprobs: Tensor | None = None, **_: Any
    ) -> dict[str, Tensor]:
        ratio = _ratio(logprobs, old_logprobs)
        outside = ((ratio > 1 + self.clip_high) & (advantages > 0)) | ((ratio < 1 - self.clip_low) & (advantages < 0))
        return {"ratio": ratio, "clip_fraction": outside.to(ratio.dtype)}


@dataclass(frozen=True)
class CISPO(Objective):
    """REINFORCE with a clipped ratio as its weight. The clip never cuts a gradient.

    Equivalent to::

        ratio = (logprobs - old_logprobs).exp().detach()
        loss = -ratio.clamp(1 - clip_low, 1 + clip_high) * advantages * logprobs

    Args:
        clip_low, clip_high: how far below and above 1 the ratio counts.

    Source: arXiv:2506.13585.
    """

    clip_low: float = 1.0
    clip_high: float = 4.0
    needs: ClassVar = ("advantages",)
    zero_at_zero_advantage: ClassVar = True

    def __call__(self, logprobs: Tensor, *, advantages: Tensor, old_logprobs: Tensor | None = None, **_: Any) -> Tensor:
        ratio = _ratio(logprobs, old_logprobs).detach()
        return -_times(ratio.clamp(1 - self.clip_low, 1 + self.clip_high) * advantages, logprobs)

    def metrics(self, logprobs: Tensor, *, old_logprobs: Tensor | None = None, **_: Any) -> dict[str, Tensor]:
        ratio = _ratio(logprobs, old_logprobs)
        return {"ratio": ratio, "clip_fraction": (ratio > 1 + self.clip_high).to(ratio.dtype)}


@dataclass(frozen=True)
class KL(Objective):
    """The k3 estimator of KL(policy || reference policy), to be added to another objective.

    Equivalent to `beta * ((ref_logprobs - logprobs).exp() - (ref_logprobs - logprobs) - 1)`.

    Args:
        beta: weight of the penalty.
    """

    beta: float = 0.01
    needs: ClassVar = ("ref_logprobs",)

    def __call__(self, logprobs: Tensor, *, ref_logprobs: Tensor, **_: Any) -> Tensor:
        return self.beta * _k3(logprobs, ref_logprobs)

    def metrics(self, logprobs: Tensor, *, ref_logprobs: Tensor, **_: Any) -> dict[str, Tensor]:
        return {"kl": _k3(logprobs, ref_logprobs)}


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
        return self.parts[0](logprobs, **per_token) + self.parts[1](logprobs, **per_token)

    def metrics(self, logprobs: Tensor, **per_token: Any) -> dict[str, Tensor]:
        return {
            k: v
            for term in self.parts
            if isinstance(term, Objective)
            for k, v in term.metrics(logprobs, **per_token).items()
        }

    def __repr__(self) -> str:
        return " + ".join(map(repr, self.parts))


sft, dft, gft, reinforce, grpo, cispo, kl = SFT, DFT, GFT, Reinforce, GRPO, CISPO, KL


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
