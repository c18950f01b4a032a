"""The log-prob op: per-token log-probs and entropies of a head, for any loss written outside."""

from __future__ import annotations

import torch
from torch import Tensor

from ..engines.accumulate import compute_dtype
from ..engines.contract import Plan
from ..head import Backend, Head, LogProbs, Operands
from . import autograd
from .backends import engine_name, engine_of
from .compile import trace
from .validation import as_backend, as_head, check_head


def linear_logprob(
    hidden: Tensor,  # [N, D]
    weight: Tensor,  # [V, D]
    targets: Tensor,  # [N]
    *,
    head: Head | None = None,
    backend: str | Backend = "auto",
) -> LogProbs:
    """Log-probability of each target under the head's softmax, and the softmax's entropy.

    The [N, V] logits are never held.

    Equivalent to, for a plain head and unmasked rows::

        log_p = (hidden @ weight.T).log_softmax(-1)  # [N, V]
        logprobs = log_p.gather(1, targets[:, None]).squeeze(1)
        entropy = -(log_p.exp() * log_p).sum(-1)

    Args:
        hidden: [N, D] fp64, fp32, bf16 or fp16. It is the backbone's output, already shifted
            against the targets.
        weight: [V, D], same choice of dtypes, not necessarily hidden's. A part of the vocabulary
            needs `Head(shard=...)`. Without it nothing can see that it is one.
        targets: [N] integers. head.ignore_index marks masked rows.
        head: bias, low-rank addition and logit transforms (`Head`). Default: a plain linear head.
        backend: "auto", "triton", "chunked", "eager", or a `Backend` with how to run. Autocast is
            ignored: the inputs' own dtypes decide. fp32 GEMMs follow
            torch.set_float32_matmul_precision, so leave it at "highest" where fp32 is meant.

    Returns:
        LogProbs(logprobs, entropy), [N] each in nats, fp32 (fp64 for fp64 inputs). Both are
        differentiable into hidden, weight and the head's tensors, for any upstream gradient, by any
        number of backward passes. create_graph=True needs "eager". Masked rows hold 0.

    Raises:
        ValueError: shapes, devices, a target outside the vocabulary (names row and V), unknown
            backend.
        TypeError: dtypes, DTensor.

    Cost: 2NDV forward; 6KDV backward for the K rows whose upstream gradient is not 0.
    """
    head, backend = as_head(head), as_backend(backend)
    if head.shard is not None and torch.compiler.is_compiling():
        return trace.outside(linear_logprob, hidden, weight, targets, head=head, backend=backend)
    operands = Operands(hidden, weight, head.bias, *(head.low_rank or (None, None)))
    targets = check_head(operands, targets, head, backend)
    dtype = compute_dtype(hidden, weight)
    name = engine_name(backend.name, hidden.device, dtype)
    if torch.compiler.is_compiling():
        return trace.linear_logprob(name, operands, targets, head, backend)
    return autograd.linear_logprob(engine_of(name), operands, Plan(targets, None, head, backend, dtype))
