"""What is compiled: the package's own launchers, called on tensors without memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from gft_kernels.engines.contract import LossPlan, Scores
from gft_kernels.engines.triton import logits as logits_kernels
from gft_kernels.engines.triton.arguments import loss_arguments
from gft_kernels.engines.triton.backward import head_backward
from gft_kernels.engines.triton.column_stats import look
from gft_kernels.engines.triton.configs import Config, pad, shipped
from gft_kernels.engines.triton.finalise import Rows, finalise
from gft_kernels.engines.triton.forward import head_forward, head_reference
from gft_kernels.engines.triton.rescale import rescale
from gft_kernels.head import Head
from gft_kernels.losses import objectives
from gft_kernels.losses.advantages import GroupRewards


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
    rewards: torch.dtype = torch.float32

    @property
    def head(self) -> Head:
        return Head(softcap=30.0) if self.capped else Head()

    @property
    def config(self) -> Config:
        return shipped(self.arch, self.dtype, self.head, self.entropy)

    @property
    def operands(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """hidden, weight, bias, targets."""
        bias = empty(self.V, dtype=self.dtype) if self.capped else None
        return (
            empty(self.K, self.D, dtype=self.dtype),
            empty(self.V, self.D, dtype=self.dtype),
            bias,
            empty(self.K, dtype=torch.int64),
        )

    @property
    def chunk(self) -> Tensor:
        return empty(self.K, pad(self.V), dtype=self.dtype)[:, : self.V]

    @property
    def partials(self) -> Tensor:
        return empty(3, triton.cdiv(self.V, self.config.block_v), self.K)

    @property
    def unit(self) -> Tensor | None:
        return empty() if self.dtype == torch.float16 else None

    def forward(self, store: bool) -> None:
        head_forward(*self.operands, empty(self.K), self.chunk if store else None, self.head, self.config)

    def backward(self) -> None:
        scores = Scores(empty(self.K), empty(self.K), empty(2, self.K))
        upstream = (empty(self.K), empty(self.K) if self.entropy else None)
        head_backward(*self.operands, scores, upstream, self.chunk, self.head, self.config)

    def finalise(self, plan: LossPlan | None) -> None:
        arguments = None if plan is None else loss_arguments(plan, slice(0, self.K), self.unit)
        finalise(self.partials, empty(self.K), self.dtype, self.head, arguments)

    def gft(self) -> LossPlan:
        """GFT on group rewards, normalised in the kernel."""
        rewards = GroupRewards(
            empty(64, dtype=self.rewards), empty(64, dtype=torch.int64), empty(self.K, dtype=torch.int64)
        )
        given = dict.fromkeys(("advantages", "old_logprobs", "ref_logprobs"))
        return LossPlan(self.operands[3], None, empty(self.K), given, objectives.gft(0.7), self.head, rewards)

    def grpo(self) -> LossPlan:
        """GRPO with a KL penalty on given advantages."""
        given: dict[str, Tensor | None] = {
            name: empty(self.K) for name in ("advantages", "old_logprobs", "ref_logprobs")
        }
        objective = objectives.grpo() + objectives.kl(0.01)
        return LossPlan(self.operands[3], None, empty(self.K), given, objective, self.head)

    def rescale(self) -> None:
        rescale(
            self.chunk, self.partials, Rows(*empty(len(Rows._fields), self.K).unbind()), self.operands[3], self.config
        )

    def logits_loss(self, plan: LossPlan, gradient: bool) -> None:
        """On logits as a model returns them: adjacent rows, their gradient in place."""
        logits = empty(self.K, self.V, dtype=self.dtype)
        logits_kernels.logits_loss(
            logits, plan, logits if gradient else None, self.unit, (1, 4096)
        )  # the block of engine.logits_loss


ALIGNED: dict[str, Any] = {"V": 256000}
CAPPED: dict[str, Any] = ALIGNED | {"capped": True}
ENTROPY: dict[str, Any] = {"entropy": True}
PRECISE: dict[str, Any] = {"rewards": torch.float64}  # as numpy hands them over
RAGGED: dict[str, Any] = {"K": 999, "D": 1040}  # neither fills its blocks
# (kernel, variant): what differs from the default problem, and the launch.
LAUNCHES: dict[tuple[str, str], tuple[dict[str, Any], Callable[[Problem], object]]] = {
    ("head_reference_kernel", ""): ({}, lambda p: head_reference(*p.operands, p.head)),
    ("head_reference_kernel", "bias+softcap"): (CAPPED, lambda p: head_reference(*p.operands, p.head)),
    ("head_fwd_kernel", "store"): ({}, lambda p: p.forward(True)),
    ("head_fwd_kernel", "store bias+softcap"): (CAPPED, lambda p: p.forward(True)),
    ("head_fwd_kernel", "store ragged"): (RAGGED, lambda p: p.forward(True)),
    ("head_fwd_kernel", "scores"): ({}, lambda p: p.forward(False)),
    ("head_fwd_kernel", "scores bias+softcap"): (CAPPED, lambda p: p.forward(False)),
    ("head_bwd_kernel", ""): ({}, Problem.backward),
    ("head_bwd_kernel", "bias+softcap"): (CAPPED, Problem.backward),
    ("head_bwd_kernel", "ragged"): (RAGGED, Problem.backward),
    ("head_bwd_kernel", "entropy"): (ENTROPY, Problem.backward),
    ("head_bwd_kernel", "entropy bias+softcap"): (CAPPED | ENTROPY, Problem.backward),
    ("head_bwd_kernel", "entropy ragged"): (RAGGED | ENTROPY, Problem.backward),
    ("finalise_kernel", "scores"): ({}, lambda p: p.finalise(None)),
    ("finalise_kernel", "gft group rewards"): ({}, lambda p: p.finalise(p.gft())),
    ("finalise_kernel", "gft fp64 rewards"): (PRECISE, lambda p: p.finalise(p.gft())),
    ("finalise_kernel", "grpo+kl bias+softcap"): (CAPPED, lambda p: p.finalise(p.grpo())),
    ("rescale_kernel", ""): ({}, Problem.rescale),
    ("rescale_kernel", "bias+softcap"): (CAPPED, Problem.rescale),
    ("columns_kernel", ""): ({}, lambda p: look(p.chunk, empty(p.K))),
    ("logits_loss_kernel", "loss"): ({}, lambda p: p.logits_loss(p.gft(), False)),
    ("logits_loss_kernel", "gft group rewards"): ({}, lambda p: p.logits_loss(p.gft(), True)),
    ("logits_loss_kernel", "gft fp64 rewards"): (PRECISE, lambda p: p.logits_loss(p.gft(), True)),
    ("logits_loss_kernel", "grpo+kl"): (ALIGNED, lambda p: p.logits_loss(p.grpo(), True)),
    ("scale_kernel", ""): ({}, lambda p: logits_kernels.scale_(empty(p.K, p.V, dtype=p.dtype), empty())),
}
