"""The same losses for trainers that hold the logits already."""

from __future__ import annotations

import torch
from torch import Tensor

from ..engines.accumulate import compute_dtype
from ..head import Backend, Head, PolicyLoss
from ..losses.advantages import GroupRewards
from ..losses.objectives import LossFunction, gft
from . import autograd
from .backends import engine_name, engine_of
from .compile import trace
from .logits_validation import check_logits_loss
from .plan import make_plan
from .result import report
from .validation import LossArguments, as_backend, as_head


def logits_policy_loss(
    logits: Tensor,  # [N, V]
    targets: Tensor,  # [N]
    advantages: Tensor | GroupRewards | None = None,  # [N]
    *,
    objective: LossFunction = gft(tau=0.7),  # noqa: B008  (frozen)
    token_weights: Tensor | None = None,  # [N]
    old_logprobs: Tensor | None = None,  # [N]
    ref_logprobs: Tensor | None = None,  # [N]
    head: Head | None = None,
    backend: str | Backend = "auto",
    inplace: bool = False,
) -> PolicyLoss:
    """`linear_policy_loss` from logits: loss and gradient in one read and one write of them.

    Prefer `linear_policy_loss`, which never makes the logits. This form is for models that hand out
    nothing else.

    Equivalent to::

        valid = targets != head.ignore_index
        log_p = (logits / head.temperature).log_softmax(-1)  # [N, V]
        logprobs = log_p.gather(1, torch.where(valid, targets, 0)[:, None]).squeeze(1)
        given = {"advantages": advantages, "old_logprobs": old_logprobs, "ref_logprobs": ref_logprobs}
        loss = (token_weights * objective(logprobs, **given))[valid].sum()

    Args:
        logits: [N, V] fp64, fp32, bf16 or fp16, after every transform of the model, already shifted
            against the targets.
        targets, advantages, objective, token_weights, old_logprobs, ref_logprobs: as in
            `linear_policy_loss`.
        head: temperature and ignore_index. Bias, scale and softcap are the model's, and are
            refused.
        backend: "auto", "triton", "chunked", "eager", or a `Backend` with how to run. Its sparsity
            is refused.
        inplace: write the gradient over the logits, which saves an [N, V] tensor and destroys them.
            Use them nowhere else. Autograd raises where another backward needs them, but a second
            loss on them would not be noticed. Ignored in compiled programs.

    Returns:
        PolicyLoss, as `linear_policy_loss`. Its loss is differentiable into the logits, in their
        dtype, by one backward pass ("eager": by any number).

    Raises:
        ValueError: as `linear_policy_loss`; inplace with the eager backend, on a leaf, on logits
            without gradient, or on logits not contiguous over V.
        TypeError: dtypes, DTensor.

    Cost: no GEMM. Triton reads each row once from memory, once more from L2, and writes it once.
    Rows that are skipped are only written.

    Source: arXiv:2604.14258 Eq. 21 for the default objective.
    """
    head, backend = as_head(head), as_backend(backend)
    given = {"advantages": advantages, "old_logprobs": old_logprobs, "ref_logprobs": ref_logprobs}
    arguments = check_logits_loss(logits, LossArguments(targets, given, token_weights, objective, head, backend))
    dtype = compute_dtype(logits)
    name = engine_name(backend.name, logits.device, dtype)
    if inplace and not torch.compiler.is_compiling():
        _check_inplace(logits)
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    if torch.compiler.is_compiling():
        return trace.logits_loss(name, logits, arguments)
    engine = engine_of(name)
    plan = make_plan(arguments, dtype, engine)
    return report(autograd.logits_loss(engine, logits, plan, inplace), plan)


def _check_inplace(logits: Tensor) -> None:
    """Refuse to overwrite logits that nobody computed, or whose rows share their memory."""
    owner = logits if logits._base is None else logits._base
    if torch.is_grad_enabled() and (not logits.requires_grad or owner.is_leaf):
        raise ValueError(
            "inplace=True overwrites the logits with their gradient: they must be computed from something that "
            "wants one."
        )
    if logits.stride(1) != 1 or (len(logits) > 1 and logits.stride(0) < logits.shape[1]):
        raise ValueError(
            "inplace=True needs rows of adjacent columns that do not overlap, "
            f"got strides {logits.stride()}: use inplace=False."
        )
