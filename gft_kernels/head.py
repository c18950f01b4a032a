"""The values a caller hands in and gets back: the head, how to run it, and the ops' results."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from .parallel import VocabularyShard


@dataclass(frozen=True)
class Sparse:
    """Column-sparse gradients: only the vocabulary columns that carry them (docs/column-sparse.md).

    Log-probs, losses and metrics stay exact.

    Equivalent to, for the logit gradient dz [K, V] of a chunk of rows::

        large = dz.abs() > eps * dz.abs().max()
        rows, columns = large.any(1), large.any(0)  # what is kept
        dz = torch.where(rows[:, None] & columns, dz, tail)

    where `tail` is rank one, has the row and column sums of what it replaces in the rows kept, and
    is 0 in the other rows.

    Args:
        error: bound of |dz' - dz| / |dz| (Frobenius norms) of every chunk. The thresholds of rows
            and columns are then the largest that hold it.
        eps: a threshold of your own in place of `error`.
        tail: False leaves the rank-one term out, and what is dropped is simply 0.
        pays: a chunk of which more than this share of the columns is kept takes the exact path.
        on_backward: called with the report of each backward of `linear_logprob`, a dict as in
            `PolicyLoss.stats`. It is not called in compiled programs.

    Raises:
        ValueError: error, eps or pays is out of range.

    Cost: the gradient GEMMs fall from 4KDV to 4fKDV for the share f of columns kept. The tail adds
    4VD a chunk.
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


class LowRank(NamedTuple):
    """A low-rank addition to the head's weight, LoRA for example, as the two factors of its logits.

    Equivalent to::

        logits = hidden @ weight.T + low_rank.hidden @ low_rank.weight.T

    For LoRA, hidden is scaling * dropout(x) @ lora_A.T and weight is lora_B. Autograd outside the
    op carries the gradient of `hidden` on to lora_A, through the dropout and to x. Several adapters
    are one, of the sum of their ranks: `torch.cat` of the hiddens and of the weights along 1.

    Args:
        hidden: [N, r] fp64, fp32, bf16 or fp16; differentiable.
        weight: [V, r], same choice of dtypes; differentiable. Where the vocabulary is sharded, the
            same rows as those of the head's weight.

    Cost: 2NVr for the logits and for each of the two gradients. No [V, D] tensor is formed. Triton
    multiplies in the wider dtype of the op's hidden and weight, and rounds the factors to it.
    `Backend.sparsity` is refused beside it.
    """

    hidden: Tensor  # [N, r]
    weight: Tensor  # [V, r]


@dataclass(frozen=True, eq=False)
class Head:
    """The model's head apart from its weight: bias, logit transforms, and how targets mark a mask.

    Equivalent to, in the order that transformers has::

        a = scale * (hidden @ weight.T + low_rank.hidden @ low_rank.weight.T + bias)
        z = a if softcap is None else softcap * torch.tanh(a / softcap)
        logits = z / temperature

    Args:
        bias: [V] or None, added to the raw logits; differentiable.
        scale: factor on the raw logits. Cohere multiplies them; for Granite, which divides them,
            give 1 / logits_scaling.
        softcap: bound of the tanh soft cap (Gemma), or None.
        temperature: divides the logits last. It is that of the policy which sampled the tokens, and
            every probability the ops report is the tempered one.
        ignore_index: the target value that marks a masked row.
        shard: the rows of the whole weight that the weight and bias of the call are
            (`VocabularyShard`), where processes share the vocabulary. None: they are the whole.
        low_rank: a low-rank addition to the weight (`LowRank`), or None.

    Raises:
        ValueError: temperature, softcap or scale is out of range.
        TypeError: low_rank is no LowRank.
    """

    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0
    ignore_index: int = -100
    shard: VocabularyShard | None = None
    low_rank: LowRank | None = None

    def __post_init__(self) -> None:
        for name in ("temperature", "softcap"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"Head.{name} = {value}: it divides the logits and must be positive and finite.")
        if self.low_rank is not None and not isinstance(self.low_rank, LowRank):
            raise TypeError(
                f"Head.low_rank is {type(self.low_rank).__name__}: give LowRank(hidden, weight), the factors "
                "[N, r] and [V, r] of what is added to the logits."
            )
        if self.scale == 0 or not -math.inf < self.scale < math.inf:
            raise ValueError(f"Head.scale = {self.scale}: it multiplies the logits and must be finite and not 0.")


PLAIN = Head()  # what head=None stands for


@dataclass(frozen=True)
class Backend:
    """How an op runs. Its name alone, `backend="chunked"`, stands for `Backend("chunked")`.

    Args:
        name: "auto" (Triton on the GPUs that run it, else chunked), "triton", "chunked" or "eager".
        chunk_rows: rows whose logits or exponentials are held at once. None lets the engine choose:
            chunked goes by D, triton by what 768 MiB hold.
        skip_rows: leave rows that cannot carry a gradient out of the head. Their log-prob and
            entropy are then NaN, because nobody computed them. False scores every unmasked row.
        validate: check target ranges, NaN and negative values in per-token inputs, in one wait for
            the device; with a shard, that the ranks fit together, in two more. Turn it off once the
            data are trusted. A target outside the vocabulary then gives a wrong row, or PyTorch's
            device assert.
        sparsity: leave out of the gradients what hardly counts (`Sparse`). None is exact.

    Raises:
        ValueError: chunk_rows is below 1, or the name is unknown (found at the call).
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
    """What the head multiplies: hidden @ weight.T + low_hidden @ low_weight.T + bias."""

    hidden: Tensor  # [N, D]
    weight: Tensor  # [V, D]
    bias: Tensor | None  # [V]
    low_hidden: Tensor | None = None  # [N, r], None where there is no low_weight
    low_weight: Tensor | None = None  # [V, r]


class LogProbs(NamedTuple):
    """What `linear_logprob` returns. Both are differentiable, and 0 at masked rows."""

    logprobs: Tensor  # [N] log p of the target
    entropy: Tensor  # [N] nats


class PolicyLoss(NamedTuple):
    """What `linear_policy_loss` and `logits_policy_loss` return.

    Only `loss` is differentiable. The rest is detached, for logs and checks. Masked rows hold 0.
    Rows that the head skipped hold NaN in logprobs and entropy, and 0 in coefficients.
    """

    loss: Tensor  # scalar, sum_t w_t * loss_t
    logprobs: Tensor  # [N]
    entropy: Tensor  # [N] nats
    coefficients: Tensor  # [N] d loss_t / d logp_t, before the weight w_t
    # Scalars on the device, over the active rows: nll, entropy, counts, what the objective reports,
    # and sparse_* where columns may be left out.
    stats: dict[str, Tensor]
    # What a model's own loss would add, differentiable: router balancing (`fuse_loss`).
    aux_loss: Tensor | None = None
