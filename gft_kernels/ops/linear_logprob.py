"""The log-prob op: per-token log-probs and entropies of a linear head, for any loss written
outside.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..head import Head, LogProbs, compute_dtype
from .backends import backend_name, resolve_backend
from .compile import trace
from .validation import check_head_inputs, check_values


def linear_logprob(
    hidden: Tensor,  # [N, D]
    weight: Tensor,  # [V, D]
    targets: Tensor,  # [N]
    *,
    head: Head | None = None,
    backend: str = "auto",
) -> LogProbs:
    """Log-probability of each target under the head's softmax, and the softmax's entropy.

    Equivalent to, without ever holding the [N, V] logits::

        log_p = reference.head_logits(hidden, weight, head).log_softmax(-1)  # [N, V]
        logprobs = log_p.gather(1, targets[:, None]).squeeze(1)
        entropy = -(log_p.exp() * log_p).sum(-1)

    Args:
        hidden: [N, D] fp64, fp32, bf16 or fp16; the backbone's output, already shifted against
            targets.
        weight: [V, D], same choice of dtypes, not necessarily hidden's.
        targets: [N] integers; head.ignore_index marks masked rows.
        head: bias and logit transforms (`Head`); default a plain linear head.
        backend: "auto", "triton", "chunked" or "eager". Autocast is ignored: the inputs' own dtypes
            decide; fp32 GEMMs follow torch.set_float32_matmul_precision, so leave it at "highest"
            where fp32 is meant.

    Returns:
        LogProbs(logprobs, entropy): [N] each, fp32 (fp64 for fp64 inputs), entropy in nats, both
        differentiable into hidden, weight and bias with any upstream gradient, any number of times.
        Masked rows hold 0.

    Raises:
        ValueError: shapes, devices, a target outside the vocabulary (names row and V), unknown
            backend.
        TypeError: dtypes, DTensor.

    Cost: 2NDV forward; 6KDV backward for the K rows whose upstream gradient is not zero.
    """
    head = Head() if head is None else head
    targets = check_head_inputs(hidden, weight, targets, head)
    name = backend_name(backend, hidden.device, compute_dtype(hidden, weight))
    if torch.compiler.is_compiling():
        return trace.linear_logprob(hidden, weight, targets, head, name)
    check_values(targets, len(weight), head)
    return resolve_backend(name).linear_logprob(hidden, weight, targets, head)
