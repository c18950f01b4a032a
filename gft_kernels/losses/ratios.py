"""Objectives of a ratio to another policy: the one that sampled, or a reference.

r = p / p_old is 1 where no old log-probs are given. d = ref - log p. Both are bounded where fp32
would overflow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .objectives import Objective, check_numbers, times


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


def _corrected_k3(logprobs: Tensor, ref_logprobs: Tensor, old_logprobs: Tensor | None) -> Tensor:
    """r * k3, differentiable through both. Value and slope stop at e^60.

    The slope is written down, because autograd would lose it in the difference of two e^d:
    r * k3 + r * (1 - e^d) = r * (log p - ref).
    """
    ratio = _ratio(logprobs, old_logprobs).detach()
    up = _log_ratio(logprobs, ref_logprobs)  # log p - ref
    most = math.exp(60)
    value = (ratio * _k3(logprobs, ref_logprobs)).detach().clamp(max=most)
    slope = (ratio * up).detach().clamp(-most, most)
    return value + slope * (up - up.detach())


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

    Raises:
        ValueError: a clip is NaN or negative, or dual_clip is below 1.

    Source: arXiv:1707.06347 (PPO), arXiv:2402.03300 (GRPO), arXiv:2503.14476 (DAPO).
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    needs: ClassVar = ("advantages",)
    zero_at_zero_advantage: ClassVar = True

    def __post_init__(self) -> None:
        check_numbers(self, clip_low=(0, math.inf), clip_high=(0, math.inf))
        if self.dual_clip is not None:
            check_numbers(self, dual_clip=(1, math.inf))

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
        found = {"ratio": ratio, "clip_fraction": outside.to(ratio.dtype)}
        if self.dual_clip is not None:
            cut = (ratio > self.dual_clip) & (advantages < 0)
            found["dual_clip_fraction"] = cut.to(ratio.dtype)
        return found


@dataclass(frozen=True)
class CISPO(Objective):
    """REINFORCE with a clipped ratio as its weight. The clip never cuts a gradient.

    Equivalent to::

        ratio = (logprobs - old_logprobs).exp().detach()
        loss = -ratio.clamp(1 - clip_low, 1 + clip_high) * advantages * logprobs

    Args:
        clip_low, clip_high: how far below and above 1 the ratio counts.

    Raises:
        ValueError: a clip is NaN or negative.

    Source: arXiv:2506.13585.
    """

    clip_low: float = 1.0
    clip_high: float = 4.0
    needs: ClassVar = ("advantages",)
    zero_at_zero_advantage: ClassVar = True

    def __post_init__(self) -> None:
        check_numbers(self, clip_low=(0, math.inf), clip_high=(0, math.inf))

    def __call__(self, logprobs: Tensor, *, advantages: Tensor, old_logprobs: Tensor | None = None, **_: Any) -> Tensor:
        ratio = _ratio(logprobs, old_logprobs).detach()
        return -times(ratio.clamp(1 - self.clip_low, 1 + self.clip_high) * advantages, logprobs)

    def metrics(self, logprobs: Tensor, *, old_logprobs: Tensor | None = None, **_: Any) -> dict[str, Tensor]:
        ratio = _ratio(logprobs, old_logprobs)
        clipped = (ratio > 1 + self.clip_high) | (ratio < 1 - self.clip_low)  # whatever the advantage's sign
        return {"ratio": ratio, "clip_fraction": clipped.to(ratio.dtype)}


@dataclass(frozen=True)
class KL(Objective):
    """The k3 estimator of KL(policy || reference policy), to be added to another objective.

    Equivalent to::

        k3 = (ref_logprobs - logprobs).exp() - (ref_logprobs - logprobs) - 1
        k3 = k3 * (logprobs - old_logprobs).exp() if corrected else k3
        loss = beta * (k3 if clamp is None else k3.clamp(max=clamp))

    Args:
        beta: weight of the penalty.
        clamp: the most that a token counts for. Beyond it there is no gradient of the penalty. verl
            has 10.
        corrected: multiply by the ratio p / p_old, through which the gradient flows too. The
            gradient is then that of the KL itself, beta * ratio * (logprobs - ref_logprobs), in
            expectation over what the old policy sampled. TRL does so by default. Without
            old_logprobs the ratio is 1, and the gradient changes all the same.

    Raises:
        ValueError: beta or clamp is NaN, beta is infinite or clamp negative.

    Source: http://joschu.net/blog/kl-approx.html (k3), arXiv:2512.02556 (corrected).
    """

    beta: float = 0.01
    clamp: float | None = None
    corrected: bool = False
    needs: ClassVar = ("ref_logprobs",)

    def __post_init__(self) -> None:
        largest = torch.finfo(torch.float64).max
        check_numbers(self, beta=(-largest, largest))
        if self.clamp is not None:
            check_numbers(self, clamp=(0, math.inf))

    def __call__(
        self, logprobs: Tensor, *, ref_logprobs: Tensor, old_logprobs: Tensor | None = None, **_: Any
    ) -> Tensor:
        return self.beta * self._bounded(logprobs, ref_logprobs, old_logprobs)

    def metrics(
        self, logprobs: Tensor, *, ref_logprobs: Tensor, old_logprobs: Tensor | None = None, **_: Any
    ) -> dict[str, Tensor]:
        return {"kl": self._bounded(logprobs, ref_logprobs, old_logprobs)}

    def _bounded(self, logprobs: Tensor, ref_logprobs: Tensor, old_logprobs: Tensor | None) -> Tensor:
        given = logprobs, ref_logprobs
        found = _corrected_k3(*given, old_logprobs) if self.corrected else _k3(*given)
        return found if self.clamp is None else found.clamp(max=self.clamp)


grpo, cispo, kl = GRPO, CISPO, KL
