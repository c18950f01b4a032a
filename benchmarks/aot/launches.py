"""What is compiled: the package's own launchers, called on tensors without memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from gft_kernels.engines.accumulate import compute_dtype
from gft_kernels.engines.contract import LossPlan, Scores, Upstream
from gft_kernels.engines.triton import logits as logits_kernels
from gft_kernels.engines.triton.advantages import group_advantages
from gft_kernels.engines.triton.arguments import loss_arguments
from gft_kernels.engines.triton.backward import head_backward
from gft_kernels.engines.triton.column_stats import look
from gft_kernels.engines.triton.configs import Config, pad, shipped
from gft_kernels.engines.triton.finalise import RowTerms, finalise
from gft_kernels.engines.triton.forward import head_forward, head_target_logit
from gft_kernels.engines.triton.rescale import rescale
from gft_kernels.head import Backend, Head, Operands
from gft_kernels.losses import objectives, ratios
from gft_kernels.losses.advantages import GroupRewards, Scale
from gft_kernels.losses.objectives import PER_TOKEN, LossFunction, PerToken


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


@dataclass(frozen=True)
class Problem:
    """A chunk of K rows of a head [V, D] without memory, and the launches over it."""

    arch: str
    dtype: torch.dtype
    K: int = 4096
    D: int = 4096
    V: int = 50257  # odd, as real vocabularies are
    capped: bool = False  # bias and soft cap
    entropy: bool = False  # an upstream gradient on the entropy
    rank: int = 0  # of a low-rank addition to the weight
    rewards: torch.dtype = torch.float32

    @property
    def head(self) -> Head:
        return Head(softcap=30.0) if self.capped else Head()

    @property
    def config(self) -> Config:
        return shipped(self.arch, self.dtype, self.head, self.entropy)

    @property
    def operands(self) -> Operands:
        bias = empty(self.V, dtype=self.dtype) if self.capped else None
        sizes = (self.D, self.rank) if self.rank else (self.D,)
        (hidden, weight), *low = ([empty(rows, size, dtype=self.dtype) for rows in (self.K, self.V)] for size in sizes)
        return Operands(hidden, weight, bias, *(low[0] if low else ()))

    @property
    def targets(self) -> Tensor:
        return empty(self.K, dtype=torch.int64)

    @property
    def chunk(self) -> Tensor:
        return empty(self.K, pad(self.V), dtype=self.dtype)[:, : self.V]

    @property
    def partials(self) -> Tensor:
        return empty(3, triton.cdiv(self.V, self.config.block_v), self.K)

    @property
    def unit(self) -> Tensor | None:
        return empty() if self.dtype == torch.float16 else None

    def target_logits(self) -> None:
        head_target_logit(self.operands, self.targets, self.head)

    def forward(self, store: bool) -> None:
        exps = self.chunk if store else None
        head_forward(self.operands, self.targets, empty(self.K), exps, self.head, self.config)

    def backward(self) -> None:
        scores = Scores(empty(self.K), empty(self.K), empty(2, self.K))
        upstream = Upstream(empty(self.K), empty(self.K) if self.entropy else None)
        head_backward(self.operands, self.targets, scores, upstream, self.chunk, self.head, self.config)

    def finalise(self, plan: LossPlan | None) -> None:
        arguments = None if plan is None else loss_arguments(plan, slice(0, self.K), self.unit)
        finalise(self.partials, empty(self.K), self.dtype, self.head, arguments)

    def plan(self, objective: LossFunction, **per_token: Tensor | None) -> LossPlan:
        """Every row of the chunk is active."""
        given: PerToken = dict.fromkeys(PER_TOKEN) | per_token
        valid, weights = empty(self.K, dtype=torch.bool), empty(self.K)
        rows = (self.targets, None, self.head, Backend("triton"), compute_dtype(weights))
        return LossPlan(*rows, valid, weights, given, objective)

    def gft(self) -> LossPlan:
        return self.plan(objectives.gft(0.7), advantages=empty(self.K))

    def grpo(self) -> LossPlan:
        """GRPO with a KL penalty."""
        return self.plan(ratios.grpo() + ratios.kl(0.01), **{name: empty(self.K) for name in PER_TOKEN})

    def group_advantages(self, scale: Scale) -> None:
        ids = empty(64, dtype=torch.int64)
        group_advantages(GroupRewards(empty(64, dtype=self.rewards), ids, empty(self.K, dtype=torch.int64), scale))

    def rescale(self) -> None:
        rows = RowTerms(*empty(len(RowTerms._fields), self.K).unbind())
        rescale(self.chunk, self.partials, rows, self.targets, self.config)

    def logits_loss(self, plan: LossPlan, gradient: bool) -> None:
        """On logits as a model returns them: adjacent rows, their gradient in place."""
        logits = empty(self.K, self.V, dtype=self.dtype)
        grad, block = logits if gradient else None, (1, 4096)  # the block of engine.logits_loss
        logits_kernels.logits_loss(logits, plan, grad, self.unit, block)


ALIGNED: dict[str, Any] = {"V": 256000}
CAPPED: dict[str, Any] = ALIGNED | {"capped": True}
ENTROPY: dict[str, Any] = {"entropy": True}
PRECISE: dict[str, Any] = {"rewards": torch.float64}  # as numpy hands them over
LOW: dict[str, Any] = {"rank": 24}  # fills no block
RAGGED: dict[str, Any] = {"K": 999, "D": 1040}  # neither fills its blocks
# (kernel, variant): what differs from the default problem, and the launch.
LAUNCHES: dict[tuple[str, str], tuple[dict[str, Any], Callable[[Problem], object]]] = {
    ("head_target_logit_kernel", ""): ({}, Problem.target_logits),
    ("head_target_logit_kernel", "bias+softcap"): (CAPPED, Problem.target_logits),
    ("head_target_logit_kernel", "low-rank"): (LOW, Problem.target_logits),
    ("head_fwd_kernel", "store"): ({}, lambda p: p.forward(True)),
    ("head_fwd_kernel", "store bias+softcap"): (CAPPED, lambda p: p.forward(True)),
    ("head_fwd_kernel", "store ragged"): (RAGGED, lambda p: p.forward(True)),
    ("head_fwd_kernel", "store low-rank"): (LOW, lambda p: p.forward(True)),
    ("head_fwd_kernel", "store bias+softcap low-rank"): (CAPPED | LOW, lambda p: p.forward(True)),
    ("head_fwd_kernel", "scores"): ({}, lambda p: p.forward(False)),
    ("head_fwd_kernel", "scores bias+softcap"): (CAPPED, lambda p: p.forward(False)),
    ("head_bwd_kernel", ""): ({}, Problem.backward),
    ("head_bwd_kernel", "bias+softcap"): (CAPPED, Problem.backward),
    ("head_bwd_kernel", "ragged"): (RAGGED, Problem.backward),
    ("head_bwd_kernel", "low-rank"): (LOW, Problem.backward),
    ("head_bwd_kernel", "entropy"): (ENTROPY, Problem.backward),
    ("head_bwd_kernel", "entropy bias+softcap"): (CAPPED | ENTROPY, Problem.backward),
    ("head_bwd_kernel", "entropy ragged"): (RAGGED | ENTROPY, Problem.backward),
    ("head_bwd_kernel", "entropy bias+softcap low-rank"): (CAPPED | ENTROPY | LOW, Problem.backward),
    ("finalise_kernel", "scores"): ({}, lambda p: p.finalise(None)),
    ("finalise_kernel", "gft"): ({}, lambda p: p.finalise(p.gft())),
    ("finalise_kernel", "grpo+kl bias+softcap"): (CAPPED, lambda p: p.finalise(p.grpo())),
    ("rescale_kernel", ""): ({}, Problem.rescale),
    ("rescale_kernel", "bias+softcap"): (CAPPED, Problem.rescale),
    ("columns_kernel", ""): ({}, lambda p: look(p.chunk, empty(p.K))),
    ("logits_loss_kernel", "loss"): ({}, lambda p: p.logits_loss(p.gft(), False)),
    ("logits_loss_kernel", "gft"): ({}, lambda p: p.logits_loss(p.gft(), True)),
    ("logits_loss_kernel", "grpo+kl"): (ALIGNED, lambda p: p.logits_loss(p.grpo(), True)),
    ("group_advantages_kernel", "group"): ({}, lambda p: p.group_advantages("group")),
    ("group_advantages_kernel", "batch"): ({}, lambda p: p.group_advantages("batch")),
    ("group_advantages_kernel", "group fp64"): (PRECISE, lambda p: p.group_advantages("group")),
    ("scale_kernel", ""): ({}, lambda p: logits_kernels.scale_(empty(p.K, p.V, dtype=p.dtype), empty())),
}
