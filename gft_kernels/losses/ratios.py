"""Objectives of a ratio to another policy: the one that sampled, or a reference.

r = p / p_old is 1 where no old log-probs are given. d = ref - log p. Both are bounded where fp32
would overflow. With sequence_ids, r is one for all tokens of a sequence: the geometric mean of
theirs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .objectives import Objective, check_numbers, times
from .sequences import sequence_means


def _log_ratio(logprobs: Tensor, old_logprobs: Tensor | None) -> Tensor:
    """log pi / pi_old, finite at log p = -inf. Without old log-probs the ratio is 1."""
    lowest = torch.finfo(torch.float32).min / 4
    logprobs = logprobs.clamp(min=lowest)
    return logprobs - (logprobs.detach() if old_logprobs is None else old_logprobs.clamp(min=lowest))


def _bounded_exp(log_ratio: Tensor) -> Tensor:
    """e^log_ratio, flat outside e^-60..e^60, because an infinite ratio times 0 would be NaN."""
    return log_ratio.clamp(-60, 60).exp()


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
    ratio = _bounded_exp(_log_ratio(logprobs, old_logprobs)).detach()
    up = _log_ratio(logprobs, ref_logprobs)  # log p - ref
    most = math.exp(60)
    value = (ratio * _k3(logprobs, ref_logprobs)).detach().clamp(max=most)
    slope = (ratio * up).detach().clamp(-most, most)
    return value + slope * (up - up.detach())


class RatioObjective(Objective):
    """An objective whose ratio is that of the token, or with sequence_ids that of its sequence."""

    sequence_ids: Tensor | bool

    def __post_init__(self) -> None:
        if not isinstance(self.sequence_ids, Tensor | bool):
            raise TypeError(
                f"{type(self).__name__}.sequence_ids is {type(self.sequence_ids).__name__}: give a tensor [N] of "
                "integers, or True where the call says which tokens are a sequence."
            )

    def _ratio(
        self, logprobs: Tensor, *, old_logprobs: Tensor | None = None, sequence_ids: Tensor | None = None, **_: Any
    ) -> Tensor:
        """r [K]. `sequence_ids` are those of the rows at hand, where the caller knows them."""
        log_ratio = _log_ratio(logprobs, old_logprobs)
        if self.sequence_ids is False:
            return _bounded_exp(log_ratio)
        found = self.sequence_ids if sequence_ids is None else sequence_ids
        if not isinstance(found, Tensor):
            raise ValueError(f"{self!r} was not told which rows are a sequence: give sequence_ids, a tensor [K].")
        return _bounded_exp(sequence_means(log_ratio, found))


@dataclass(frozen=True)
class GRPO(RatioObjective):
    """The clipped ratio of PPO and GRPO. Without old_logprobs the ratio is 1.

    Equivalent to::

        ratio = (logprobs - old_logprobs).exp()
        clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
        loss = -torch.minimum(ratio * advantages, clipped * advantages)

    Args:
        clip_low, clip_high: how far below and above 1 the ratio counts. clip_high = 0.28 is DAPO's.
        dual_clip: bounds the loss of tokens with A < 0 at -dual_clip * A, for example 3. None is
            off.
        sequence_ids: whether the ratio is the sequence's, as in `gspo`. False takes the token's.

    Raises:
        ValueError: a clip is NaN or negative, or dual_clip is below 1.
        TypeError: sequence_ids is neither a tensor nor a bool.

    Source: arXiv:1707.06347 (PPO), arXiv:2402.03300 (GRPO), arXiv:2503.14476 (DAPO).
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    sequence_ids: Tensor | bool = False
    needs: ClassVar = ("advantages",)
    zero_at_zero_advantage: ClassVar = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, clip_low=(0, math.inf), clip_high=(0, math.inf))
        if self.dual_clip is not None:
            check_numbers(self, dual_clip=(1, math.inf))

    def __call__(self, logprobs: Tensor, *, advantages: Tensor, **per_token: Any) -> Tensor:
        ratio = self._ratio(logprobs, **per_token)
        clipped = ratio.clamp(1 - self.clip_low, 1 + self.clip_high)
        loss = torch.maximum(-ratio * advantages, -clipped * advantages)
        if self.dual_clip is not None:
            loss = torch.where(advantages < 0, torch.minimum(loss, -self.dual_clip * advantages), loss)
        return loss

    def metrics(self, logprobs: Tensor, *, advantages: Tensor, **per_token: Any) -> dict[str, Tensor]:
        ratio = self._ratio(logprobs, **per_token)
        outside = ((ratio > 1 + self.clip_high) & (advantages > 0)) | ((ratio < 1 - self.clip_low) & (advantages < 0))
        found = {"ratio": ratio, "clip_fraction": outside.to(ratio.dtype)}
        if self.dual_clip is not None:
            cut = (ratio > self.dual_clip) & (advantages < 0)
            found["dual_clip_fraction"] = cut.to(ratio.dtype)
        return found


@dataclass(frozen=True)
class CISPO(RatioObjective):
    """REINFORCE with a clipped ratio as its weight. The clip never cuts a gradient.

    Equivalent to::

        ratio = (logprobs - old_logprobs).exp().detach()
        loss = -ratio.clamp(1 - clip_low, 1 + clip_high) * advantages * logprobs

    Args:
        clip_low, clip_high: how far below and above 1 the ratio counts.
        sequence_ids: whether the ratio is the sequence's, as in `gspo`. False takes the token's.

    Raises:
        ValueError: a clip is NaN or negative.
        TypeError: sequence_ids is neither a tensor nor a bool.

    Source: arXiv:2506.13585.
    """

    clip_low: float = 1.0
    clip_high: float = 4.0
    sequence_ids: Tensor | bool = False
    needs: ClassVar = ("advantages",)
    zero_at_zero_advantage: ClassVar = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, clip_low=(0, math.inf), clip_high=(0, math.inf))

    def __call__(self, logprobs: Tensor, *, advantages: Tensor, **per_token: Any) -> Tensor:
        ratio = self._ratio(logprobs, **per_token).detach()
        return -times(ratio.clamp(1 - self.clip_low, 1 + self.clip_high) * advantages, logprobs)

    def metrics(self, logprobs: Tensor, **per_token: Any) -> dict[str, Tensor]:
        ratio = self._ratio(logprobs, **per_token)
        clipped = (ratio > 1 + self.clip_high) | (ratio < 1 - self.clip_low)  # whatever the advantage's sign
        return {"ratio": ratio, "clip_fraction": clipped.to(ratio.dtype)}


@dataclass(frozen=True)
class KL(RatioObjective):
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
        sequence_ids: whether the ratio of the correction is the sequence's, as in `gspo`, and as
            TRL has it there. False takes the token's.

    Raises:
        ValueError: beta or clamp is NaN, beta is infinite or clamp negative, or sequence_ids are
            given and nothing is corrected.
        TypeError: sequence_ids is neither a tensor nor a bool.

    Source: http://joschu.net/blog/kl-approx.html (k3), arXiv:2512.02556 (corrected).
    """

    beta: float = 0.01
    clamp: float | None = None
    corrected: bool = False
    sequence_ids: Tensor | bool = False
    needs: ClassVar = ("ref_logprobs",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sequence_ids is not False and not self.corrected:
            raise ValueError("KL.sequence_ids: only kl(beta, corrected=True) has a ratio. Leave them out.")
        largest = torch.finfo(torch.float64).max
        check_numbers(self, beta=(-largest, largest))
        if self.clamp is not None:
            check_numbers(self, clamp=(0, math.inf))

    def __call__(self, logprobs: Tensor, **per_token: Any) -> Tensor:
        return self.beta * self._bounded(logprobs, **per_token)

    def metrics(self, logprobs: Tensor, **per_token: Any) -> dict[str, Tensor]:
        return {"kl": self._bounded(logprobs, **per_token)}

    def _bounded(self, logprobs: Tensor, *, ref_logprobs: Tensor, **per_token: Any) -> Tensor:
        if not self.corrected:
            found = _k3(logprobs, ref_logprobs)
        elif self.sequence_ids is False:
            found = _corrected_k3(logprobs, ref_logprobs, per_token.get("old_logprobs"))
        else:  # the ratio's slope is spread over the sequence, so that nothing cancels it here
            ratio = self._ratio(logprobs, **per_token)
            found = (ratio * _k3(logprobs, ref_logprobs)).clamp(max=math.exp(60))
        return found if self.clamp is None else found.clamp(max=self.clamp)


grpo, cispo, kl = GRPO, CISPO, KL


def gspo(
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
    dual_clip: float | None = None,
    *,
    sequence_ids: Tensor | bool = True,  # [N]
) -> GRPO:
    """The clipped ratio of whole sequences: `grpo` with one ratio for all tokens of a sequence.

    Equivalent to, for each sequence and its n unmasked tokens::

        ratio = (logprobs - old_logprobs).mean().exp()  # a number: (p / p_old) ** (1 / n)
        clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
        loss = -torch.minimum(ratio * advantages, clipped * advantages)  # [n]

    The gradient goes through the ratio into every token of the sequence. The paper's mean is the
    reduction "seq-mean-token-mean".

    Args:
        clip_low, clip_high: how far below and above 1 the ratio counts. The defaults are the
            paper's; a mean over tokens moves far less than the ratio of one.
        dual_clip: as in `grpo`.
        sequence_ids: [N] integers from 0, which sequence a token belongs to. Masked rows may hold
            any value. True takes those of the call: the rows of a `PolicyBatch`, the sequence_ids
            of `GroupRewards` or of `LinearPolicyLoss`.

    Returns:
        An objective for the ops. In their result a token's coefficient is the derivative of the sum
        of its sequence's losses. A sequence must lie whole in one call.

    Raises:
        ValueError: a clip is NaN or negative, or dual_clip is below 1. At the call: no sequence_ids
            are known, or one is negative.
        TypeError: sequence_ids is neither a tensor nor a bool, or at the call not of integers.

    Cost: a second product. No gradient is known before the log-probs of all tokens are, so the ops
    take 2KDV for these and 6KDV for the tokens whose sequence the clip left a gradient.

    Source: arXiv:2507.18071.
    """
    return GRPO(clip_low, clip_high, dual_clip, sequence_ids)
