"""Who is measured: every provider computes the GFT loss (tau = 0.7) of a batch, differentiable into hidden and weight.

A provider is a function (batch) -> scalar loss. A peer whose package is missing is listed in MISSING with the reason. FLOORS are timed
beside them but compute no loss: (batch) -> (dhidden, dweight) of a head whose softmax costs nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from gft_kernels import linear_policy_loss

from .cases import TAU, Batch

Provider = Callable[[Batch], Tensor]


def gft_loss(logprobs: Tensor, batch: Batch) -> Tensor:
    """The loss a peer writes on top of its per-token log-probs; masked rows are 0 by their weight."""
    p = logprobs.detach().exp()
    return -(batch.token_weights * batch.advantages * torch.where(p < TAU, p, 1.0) * logprobs).sum()


def eager(batch: Batch) -> Tensor:
    """Full logits, as a model with a head computes them."""
    logits = F.linear(batch.hidden, batch.weight).float()
    return gft_loss(-F.cross_entropy(logits, batch.targets, reduction="none"), batch)


def torch_fused(batch: Batch) -> Tensor:
    """torch's own chunked head, per-token losses out (without options it is the eager path)."""
    options = torch.nn.LinearCrossEntropyOptions()
    losses = F.linear_cross_entropy(batch.hidden, batch.weight, batch.targets, reduction="none", options=options)
    return gft_loss(-losses.float(), batch)


def own(backend: str) -> Provider:
    def provider(batch: Batch) -> Tensor:
        return linear_policy_loss(
            batch.hidden, batch.weight, batch.targets, batch.advantages, token_weights=batch.token_weights, backend=backend
        ).loss

    return provider


def bare_gemms(batch: Batch) -> tuple[Tensor, Tensor]:
    """The three matrix products of a head over all rows, by the library, in the case's dtype, and nothing else."""
    logits = batch.hidden @ batch.weight.T
    return logits @ batch.weight, logits.T @ batch.hidden


PROVIDERS: dict[str, Provider] = {"eager": eager, "gft-chunked": own("chunked")}
FLOORS: dict[str, Callable[[Batch], tuple[Tensor, Tensor]]] = {"bare-gemms": bare_gemms}
MISSING: dict[str, str] = {}
if hasattr(F, "linear_cross_entropy"):
    PROVIDERS["torch-linear-ce"] = torch_fused
else:
    MISSING["torch-linear-ce"] = f"torch {torch.__version__} has no F.linear_cross_entropy (2.13 has)"
if torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1":
    PROVIDERS["gft-triton"] = own("triton")
else:
    MISSING["gft-triton"] = "no CUDA or ROCm device is visible to torch"
