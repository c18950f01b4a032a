"""Who is measured.

A provider is a function (batch) -> scalar loss: the GFT loss (tau = 0.7) of the batch,
differentiable into hidden and weight. FLOORS are timed beside them without a gate: they compute no
loss.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gft_kernels import Backend, Sparse, linear_logprob, linear_policy_loss
from gft_kernels.env import version

from ..inputs.cases import TAU, Batch
from .peers import PEERS, Provider, find_peers


def eager_logprobs(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Full logits, as a model with a head computes them, in fp32 from there on."""
    return -F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="none")


def eager(batch: Batch) -> Tensor:
    return batch.gft_loss(eager_logprobs(batch.hidden, batch.weight, batch.targets))


@functools.cache
def _compiled() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return torch.compile(eager_logprobs, dynamic=False)


def compiled(batch: Batch) -> Tensor:
    """torch.compile of the eager head, for these shapes."""
    return batch.gft_loss(_compiled()(batch.hidden, batch.weight, batch.targets))


def authors(batch: Batch) -> Tensor:
    """The method's published code: full logits, a copy, and a second softmax for the weight C."""
    logits = F.linear(batch.hidden, batch.weight).float()
    targets = batch.targets.clamp(min=0)[:, None]
    logprobs = logits.log_softmax(-1).gather(1, targets).squeeze(1)
    p = logits.detach().clone().softmax(-1).gather(1, targets).squeeze(1)
    return -(batch.token_weights * batch.advantages * torch.where(p < TAU, p, 1.0) * logprobs).sum()


def torch_fused(batch: Batch) -> Tensor:
    """torch's own chunked head, per-token losses out (without options it is the eager path)."""
    options = torch.nn.LinearCrossEntropyOptions()
    losses = F.linear_cross_entropy(batch.hidden, batch.weight, batch.targets, reduction="none", options=options)
    return batch.gft_loss(-losses.float())


def fused(backend: str | Backend) -> Provider:
    """Our loss: gradients formed in the forward."""

    def provider(batch: Batch) -> Tensor:
        return linear_policy_loss(
            batch.hidden,
            batch.weight,
            batch.targets,
            batch.advantages,
            token_weights=batch.token_weights,
            backend=backend,
        ).loss

    return provider


def sparse(backend: str) -> Provider:
    """Our loss with column-sparse gradients at their default bound."""
    return fused(Backend(backend, sparsity=Sparse()))


def logprob(backend: str) -> Provider:
    """Our log-probs, the loss written outside."""
    return lambda batch: batch.gft_loss(
        linear_logprob(batch.hidden, batch.weight, batch.targets, backend=backend).logprobs
    )


class _BareGemms(torch.autograd.Function):
    """The three matrix products of a head over all rows, in the case's dtype, and nothing else."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor) -> Tensor:
        logits = hidden @ weight.T
        ctx.save_for_backward(hidden, weight, logits)
        return logits[0, 0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        hidden, weight, logits = ctx.saved_tensors
        return logits @ weight, logits.T @ hidden


FLOORS: dict[str, Provider] = {"bare-gemms": lambda batch: _BareGemms.apply(batch.hidden, batch.weight)}
COMPILED = {"compile"}
OWN: dict[str, Callable[[str], Provider]] = {"gft": fused, "gft-sparse": sparse, "gft-logprob": logprob}  # x backend


_peers = functools.cache(find_peers)


@functools.cache
def providers() -> dict[str, Provider]:
    """What runs here, in the order of the tables: the baselines, the peers, ours."""
    found = {"eager": eager, "compile": compiled, "authors": authors}
    if hasattr(F, "linear_cross_entropy"):
        found["torch-linear-ce"] = torch_fused
    found |= _peers()[0]
    backends = ["chunked", *(["triton"] if _triton_runs() else [])]
    return found | {f"{name}-{backend}": make(backend) for backend in backends for name, make in OWN.items()}


@functools.cache
def missing() -> dict[str, str]:
    """Name -> reason of every provider that cannot run here."""
    absent = (
        {}
        if hasattr(F, "linear_cross_entropy")
        else {"torch-linear-ce": f"torch {torch.__version__} has no F.linear_cross_entropy"}
    )
    absent |= _peers()[1]
    return absent | (
        {} if _triton_runs() else {f"{name}-triton": "no CUDA or ROCm device is visible to torch" for name in OWN}
    )


def _triton_runs() -> bool:
    return torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1"


def find(name: str) -> Provider:
    """The provider or floor of a name.

    Raises:
        KeyError: nobody has that name here.
    """
    return FLOORS[name] if name in FLOORS else providers()[name]


def package(name: str) -> str:
    """Package and version behind a provider: torch, where it is none of PEERS."""
    found = PEERS[name].package if name in PEERS else "gft-kernels" if name.startswith("gft") else "torch"
    return f"{found} {version(found)}"
