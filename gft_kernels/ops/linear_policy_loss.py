"""The fused loss: any per-token objective on a linear head, in one pass over the vocabulary."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..engines.accumulate import compute_dtype
from ..head import Backend, Head, Operands, PolicyLoss
from ..losses.advantages import GroupRewards
from ..losses.objectives import LossFunction, gft, with_sequences
from ..losses.reductions import Reduction, token_weights
from . import autograd
from .backends import engine_name, engine_of
from .compile import trace
from .plan import make_plan
from .result import report
from .validation import LossArguments, as_backend, as_head, check_head_loss


def linear_policy_loss(
    hidden: Tensor,  # [N, D]
    weight: Tensor,  # [V, D]
    targets: Tensor,  # [N]
    advantages: Tensor | GroupRewards | None = None,  # [N]
    *,
    objective: LossFunction = gft(tau=0.7),  # noqa: B008  (frozen)
    token_weights: Tensor | None = None,  # [N]
    old_logprobs: Tensor | None = None,  # [N]
    ref_logprobs: Tensor | None = None,  # [N]
    head: Head | None = None,
    backend: str | Backend = "auto",
) -> PolicyLoss:
    """A policy-gradient loss over the head, with its gradients, without the [N, V] logits.

    Equivalent to::

        logprobs = linear_logprob(hidden, weight, targets, head=head).logprobs
        given = {"advantages": advantages, "old_logprobs": old_logprobs, "ref_logprobs": ref_logprobs}
        losses = objective(logprobs, **given)
        loss = (token_weights * losses)[targets != head.ignore_index].sum()

    Args:
        hidden: [N, D] fp64, fp32, bf16 or fp16. It is the backbone's output, already shifted
            against the targets.
        weight: [V, D], same choice of dtypes. A part of the vocabulary needs
            `Head(shard=...)`. Without it nothing can see that it is one.
        targets: [N] integers. head.ignore_index (-100) marks masked rows.
        advantages: [N] floating point, or `GroupRewards`, which are normalised here. None for sft()
            and dft().
        objective: sft(), dft(), gft(tau), reinforce(), grpo(...), cispo(...), gspo(...), a sum with
            kl(beta), or any function f(logprobs, **per_token) -> loss [K] whose element t depends
            on row t alone.
        token_weights: [N] floating point, the reduction (`gft_kernels.token_weights`). Default: the
            mean over the unmasked targets.
        old_logprobs: [N] log-probs of the sampling policy in nats, for ratios.
        ref_logprobs: [N] log-probs of the reference policy in nats, for kl().
        head: bias, low-rank addition and logit transforms (`Head`). Default: a plain linear head.
        backend: "auto", "triton", "chunked", "eager", or a `Backend` with how to run. Autocast is
            ignored: the inputs' own dtypes decide.

    Returns:
        PolicyLoss(loss, logprobs, entropy, coefficients, stats). Only loss is differentiable, into
        hidden, weight and the head's tensors, by any number of backward passes. create_graph=True
        needs "eager".
        The per-token inputs are constants. A batch without active rows has loss 0 and gradients 0.
        Rows that cannot carry a gradient are left out of the head: masked rows, rows of weight 0,
        and for most built-in objectives rows of advantage 0. `Backend.skip_rows` says what is
        reported there.

    Raises:
        ValueError: shapes, devices, a target outside the vocabulary, NaN in a per-token input, a
            missing input of the objective, an objective that mixes rows, unknown backend.
        TypeError: dtypes, DTensor.

    Cost: 6KDV for K active rows, less where hidden, weight or both need no gradient. A ratio for
    whole sequences (gspo) has a pass before it, 2KDV.

    Source: arXiv:2604.14258 Eq. 21 for the default objective.
    """
    head, backend = as_head(head), as_backend(backend)
    operands = Operands(hidden, weight, head.bias, *(head.low_rank or (None, None)))
    given: Any = {"advantages": advantages, "old_logprobs": old_logprobs, "ref_logprobs": ref_logprobs}
    if head.shard is not None and torch.compiler.is_compiling():
        given |= {"objective": objective, "token_weights": token_weights, "head": head, "backend": backend}
        return trace.outside(linear_policy_loss, hidden, weight, targets, **given)
    arguments = check_head_loss(operands, LossArguments(targets, given, token_weights, objective, head, backend))
    dtype = compute_dtype(hidden, weight)
    name = engine_name(backend.name, hidden.device, dtype)
    if torch.compiler.is_compiling():
        return trace.policy_loss(name, operands, arguments)
    engine = engine_of(name)
    plan = make_plan(arguments, dtype, engine)
    return report(autograd.policy_loss(engine, operands, plan), plan)


class LinearPolicyLoss(nn.Module):
    """`linear_policy_loss` as a module: the choices at construction, the tensors at the call.

    Equivalent to::

        mask = targets != head.ignore_index
        weights = token_weights(reduction, mask, sequence_ids, max_length=max_length, **counts)
        linear_policy_loss(hidden, weight, targets, advantages, token_weights=weights, ...)

    Args:
        objective, head, backend: as in `linear_policy_loss`.
        reduction: a name of `token_weights`.
        max_length: L_max of "seq-mean-token-sum-norm" in tokens.

    Returns:
        PolicyLoss, at the call, as `linear_policy_loss`.

    Raises:
        ValueError: at the call, what `linear_policy_loss` and `token_weights` refuse.
        TypeError: at the call, dtypes.

    Cost: that of `linear_policy_loss`.
    """

    def __init__(
        self,
        objective: LossFunction = gft(tau=0.7),  # noqa: B008  (frozen)
        *,
        reduction: Reduction = "token-mean",
        max_length: int | None = None,
        head: Head | None = None,
        backend: str | Backend = "auto",
    ) -> None:
        super().__init__()
        self.objective, self.reduction, self.max_length = objective, reduction, max_length
        self.head, self.backend = as_head(head), backend

    def forward(
        self,
        hidden: Tensor,  # [N, D]
        weight: Tensor,  # [V, D]
        targets: Tensor,  # [N]
        advantages: Tensor | GroupRewards | None = None,  # [N]
        *,
        sequence_ids: Tensor | None = None,  # [N]
        old_logprobs: Tensor | None = None,  # [N]
        ref_logprobs: Tensor | None = None,  # [N]
        num_tokens: int | Tensor | None = None,
        num_sequences: int | Tensor | None = None,
    ) -> PolicyLoss:
        """See `linear_policy_loss` and `token_weights`. GroupRewards bring sequence_ids."""
        if sequence_ids is None and isinstance(advantages, GroupRewards):
            sequence_ids = advantages.sequence_ids
        objective = self.objective if sequence_ids is None else with_sequences(self.objective, sequence_ids)
        weights = token_weights(
            self.reduction,
            targets != self.head.ignore_index,
            sequence_ids,
            num_tokens=num_tokens,
            num_sequences=num_sequences,
            max_length=self.max_length,
        )
        return linear_policy_loss(
            hidden,
            weight,
            targets,
            advantages,
            objective=objective,
            token_weights=weights,
            old_logprobs=old_logprobs,
            ref_logprobs=ref_logprobs,
            head=self.head,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        return f"objective={self.objective!r}, reduction={self.reduction!r}, backend={self.backend!r}"
