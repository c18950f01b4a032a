"""The values a caller hands in and gets back: the head, how to run it, and the ops' results.

    a = scale * (hidden @ weight.T + bias)        scale: Granite divides (1 / logits_scaling), Cohere multiplies
    z = softcap * tanh(a / softcap)               Gemma; left out when softcap is None
    z = z / temperature                           the policy that sampled the tokens

The order is the one of transformers: scale, softcap, temperature.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


@dataclass(frozen=True)
class Sparse:
    """Gradients over the vocabulary columns that carry them (docs/column-sparse.md); log-probs,
    losses and metrics stay exact.

    Equivalent to, for the logit gradient dz [K, V] of a chunk of rows::

        keep = (dz.abs() > eps * dz.abs().max()).any(0)  # [V], and the targets of rows with any entry above that
        dz = torch.where(keep, dz, tail)  # tail: rank one, with the dropped entries' row and column sums

    Args:
        error: bound of |dz' - dz| / |dz| (Frobenius norms) of every chunk; eps is then the largest
            power of two that holds it.
        eps: a threshold of your own in place of `error`.
        tail: stand in for what was dropped by a rank-one term; False leaves it out.
        pays: a chunk of which more than this share of the columns is kept takes the exact path.
        on_backward: called with the report of each backward of `linear_logprob`, a dict as in
            `PolicyLoss.stats`; not in compiled programs.

    Raises:
        ValueError: error, eps or pays out of range.
    """

    error: float = 1e-3
    eps: float | None = None
    tail: bool = True
    pays: float = 0.5
    on_backward: Callable[[dict[str, Tensor]], None] | None = None

    def __post_init__(self) -> None:
        for name in ("error", "eps"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise ValueError(
                    f"Sparse.{name} = {value}: it is relative to the gradient and must be at least 0 and below 1."
                )
        if not 0 <= self.pays <= 1:
            raise ValueError(f"Sparse.pays = {self.pays}: it is a share of the columns, 0 to 1.")


@dataclass(frozen=True, eq=False)
class Head:
    """The model's head apart from its weight: bias, logit transforms, and how its targets mark a mask.

    Args:
        bias: [V] or None, added to the raw logits; differentiable.
        scale: factor on the raw logits.
        softcap: bound of the tanh soft cap, or None.
        temperature: divides the logits last; every probability the ops report is the tempered one.
        ignore_index: the target value that marks a masked row.

    Raises:
        ValueError: temperature, softcap or scale out of range.
    """

    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0
    ignore_index: int = -100

    def __post_init__(self) -> None:
        for name in ("temperature", "softcap"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"Head.{name} = {value}: it divides the logits and must be positive and finite.")
        if self.scale == 0 or not -math.inf < self.scale < math.inf:
            raise ValueError(f"Head.scale = {self.scale}: it multiplies the logits and must be finite and not 0.")


@dataclass(frozen=True)
class Backend:
    """How an op runs. Its name alone, `backend="chunked"`, stands for `Backend("chunked")`.

    Args:
        name: "auto" (Triton on the GPUs that run it, else chunked), "triton", "chunked" or "eager".
        chunk_rows: rows whose logits or exponentials are held at once. None lets the engine choose:
            from D (chunked), or what 768 MiB hold (triton).
        skip_rows: leave rows that cannot carry a gradient out of the head. Their log-prob and
            entropy are then NaN, because nobody computed them. False scores every unmasked row.
        validate: check target ranges and NaN in per-token inputs, in one wait for the device. Turn
            it off once the data are trusted: a target outside the vocabulary then gives a wrong row,
            or PyTorch's device assert.
        sparsity: leave out of the gradients what hardly counts (`Sparse`); None is exact.

    Raises:
        ValueError: chunk_rows below 1; at the call, an unknown name.
    """

    name: str = "auto"
    chunk_rows: int | None = None
    skip_rows: bool = True
    validate: bool = True
    sparsity: Sparse | None = None

    def __post_init__(self) -> None:
        if self.chunk_rows is not None and self.chunk_rows < 1:
            raise ValueError(
                f"Backend.chunk_rows = {self.chunk_rows}: give at least 1, or None to let the engine choose."
            )


class Operands(NamedTuple):
    """What the head multiplies: logits = hidden @ weight.T + bias, before the transforms."""

    hidden: Tensor  # [N, D]
    weight: Tensor  # [V, D]
    bias: Tensor | None  # [V]


class LogProbs(NamedTuple):
    """What `linear_logprob` returns; both differentiable, 0 at masked rows."""

    logprobs: Tensor  # [N] log p of the target
    entropy: Tensor  # [N] nats


class PolicyLoss(NamedTuple):
    """What `linear_policy_loss` returns.

    Only `loss` is differentiable; the rest is detached, for logs and checks.

    Rows with a masked target hold 0; rows the head skipped hold NaN in logprobs and entropy and 0
    in coefficients.
    """

    loss: Tensor  # scalar, sum_t w_t * loss_t
    logprobs: Tensor  # [N]
    entropy: Tensor  # [N] nats
    coefficients: Tensor  # [N] d loss_t / d logp_t, before the weight w_t
    stats: dict[
        str, Tensor
    ]  # scalars over the active rows, on the device: nll, entropy, counts, the objective's own, sparse_*
