"""The fused loss: any per-token objective on a linear head, gradients formed in one pass over the vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .advantages import GroupRewards
from .backends import resolve_backend
from .head import Head, PolicyLoss, compute_dtype
from .objectives import LossFunction, Objective, gft
from .plan import LossPlan, chosen, pick, scatter
from .reductions import Reduction, token_weights
from .validation import check_floats, check_head_inputs, check_per_token


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
    backend: str = "auto",
) -> PolicyLoss:
    """A policy-gradient loss over the head, with its gradients, without the [N, V] logits.

    Equivalent to::

        logprobs = linear_logprob(hidden, weight, targets, head=head).logprobs
        losses = objective(logprobs, advantages=advantages, old_logprobs=old_logprobs, ref_logprobs=ref_logprobs)
        loss = (token_weights * losses)[targets != -100].sum()

    where, for the default objective `gft(tau)`, losses = -advantages * C(p) * logprobs, C(p) = p if p < tau else 1, detached.

    Args:
        hidden: [N, D] fp64, fp32, bf16 or fp16; the backbone's output, already shifted against targets.
        weight: [V, D], same choice of dtypes.
        targets: [N] integers; head.ignore_index (-100) marks masked rows.
        advantages: [N] per-token advantages, or `GroupRewards`, which are normalised here; None for sft() and dft().
        objective: sft(), dft(), gft(tau), reinforce(), grpo(...), cispo(...), a sum with kl(beta), or any function
            f(logprobs, **per_token) -> loss [K] whose element t depends on row t alone.
        token_weights: [N] the reduction (`gft_kernels.token_weights`); default: mean over the unmasked targets.
        old_logprobs: [N] log-probs of the sampling policy, for ratios.
        ref_logprobs: [N] log-probs of the reference policy, for kl().
        head: bias, logit transforms and how to run (`Head`).
        backend: "auto", "triton", "chunked" or "eager". Autocast is ignored: the inputs' own dtypes decide.

    Returns:
        PolicyLoss(loss, logprobs, entropy, coefficients, stats); only loss is differentiable, into hidden, weight and
        bias. Advantages, token_weights, old and reference log-probs are constants. A batch without active rows has loss 0 and
        gradients 0. Rows that cannot carry a gradient (masked, weight 0, and for the built-in objectives advantage 0)
        are left out of the head: see `Head.skip_rows` for what is reported there.

    Raises:
        ValueError: shapes, devices, a target outside the vocabulary, NaN advantages, missing inputs of the objective, an
            objective that mixes rows, unknown backend. TypeError: dtypes, DTensor.

    Cost: 6KDV for K active rows; less where hidden, weight or both need no gradient.
    Source: arXiv:2604.14258 Eq. 21 for the default objective.
    """
    head = Head() if head is None else head
    targets = check_head_inputs(hidden, weight, targets, head)
    given = {"advantages": advantages, "old_logprobs": old_logprobs, "ref_logprobs": ref_logprobs}
    plan, valid = _make_plan(hidden, compute_dtype(hidden, weight), targets, given, token_weights, objective, head)
    result = resolve_backend(backend, hidden.device, compute_dtype(hidden, weight)).policy_loss(hidden, weight, plan)
    if head.validate and not getattr(objective, "rowwise", False):
        _check_rowwise(plan, result.logprobs)
    skipped = torch.where(valid, torch.nan, 0.0).to(result.logprobs.dtype)  # what rows outside the plan report
    return PolicyLoss(
        result.loss,
        scatter(result.logprobs, plan.rows, skipped),
        scatter(result.entropy, plan.rows, skipped),
        scatter(result.coefficients, plan.rows, torch.zeros_like(skipped)),
        _stats(plan, result.logprobs, result.entropy, valid),
    )


def _make_plan(
    hidden: Tensor, dtype: torch.dtype, targets: Tensor, given: dict, token_weights: Tensor | None, objective: LossFunction, head: Head
) -> tuple[LossPlan, Tensor]:
    """The plan of a call and the mask [N] of its unmasked rows; waits for the device to check values and to choose rows."""
    valid = targets != head.ignore_index
    groups = None
    if isinstance(given["advantages"], GroupRewards):
        groups = given["advantages"]
        given = given | {"advantages": groups.per_token(valid)}
    for name in getattr(objective, "needs", ()):
        if given[name] is None:
            raise ValueError(f"objective {objective!r} needs {name} [N]; none were given.")
    weights = valid.to(dtype) / valid.sum().clamp(min=1) if token_weights is None else token_weights
    for name, vector in (*given.items(), ("token_weights", weights)):
        if vector is not None:
            check_per_token(name, vector, hidden)
            if head.validate:
                check_floats(name, vector, valid)
    given = {name: None if x is None else x.detach().to(dtype) for name, x in given.items()}
    weights = torch.where(valid, weights.detach(), 0).to(dtype)
    rows = _active_rows(valid, weights, given["advantages"], objective, head)
    per_token = {name: None if x is None else pick(x, rows) for name, x in given.items()}
    return LossPlan(targets, rows, pick(weights, rows), per_token, objective, head, groups), valid


def _active_rows(valid: Tensor, weights: Tensor, advantages: Tensor | None, objective: LossFunction, head: Head) -> Tensor | None:
    """Indices of the rows the head must see, None for all of them."""
    active = valid
    if head.skip_rows:
        active = active & (weights != 0)
        if getattr(objective, "zero_at_zero_advantage", False):
            active = active & (advantages != 0)
    return chosen(active)


@torch.no_grad()
def _check_rowwise(plan: LossPlan, logprobs: Tensor) -> None:
    """A user's objective evaluated on every other row must give the losses it gives on all: [K] work, nothing over V."""
    whole = plan.objective(logprobs, **plan.per_token)
    for stripe in (slice(0, None, 2), slice(1, None, 2)):
        part = plan.objective(logprobs[stripe], **{name: None if x is None else x[stripe] for name, x in plan.per_token.items()})
        if not torch.allclose(whole[stripe], part, equal_nan=True):
            raise ValueError(
                f"objective {plan.objective!r} mixes rows: its loss of a row changes with the other rows of the call. The fused pass "
                "sees rows in chunks, so use linear_logprob and write the loss on its logprobs."
            )


@torch.no_grad()
def _stats(plan: LossPlan, logprobs: Tensor, entropy: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """Means over the rows the head saw (0 if none) and the two counts, as device scalars: no synchronisation."""
    vectors = {"nll": -logprobs, "entropy": entropy}
    if isinstance(plan.objective, Objective):
        vectors |= plan.objective.metrics(logprobs, **plan.per_token)
    count = max(len(logprobs), 1)
    stats = {name: x.sum() / count for name, x in vectors.items()}
    stats["tokens"] = valid.sum()
    stats["active_tokens"] = torch.tensor(len(logprobs), device=valid.device)
    return stats


class LinearPolicyLoss(nn.Module):
    """`linear_policy_loss` as a module: the choices at construction, the tensors at the call.

    Equivalent to::

        weights = token_weights(reduction, targets != head.ignore_index, sequence_ids, **counts)
        linear_policy_loss(hidden, weight, targets, advantages, token_weights=weights, ...)

    Args:
        objective, head, backend: as in `linear_policy_loss`.
        reduction: a name of `token_weights`; max_length is the L_max of "seq-mean-token-sum-norm".
    """

    def __init__(
        self,
        objective: LossFunction = gft(tau=0.7),  # noqa: B008  (frozen)
        *,
        reduction: Reduction = "token-mean",
        max_length: int | None = None,
        head: Head | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.objective, self.reduction, self.max_length = objective, reduction, max_length
        self.head, self.backend = Head() if head is None else head, backend

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
        """See `linear_policy_loss` and `token_weights`; sequence_ids default to those of GroupRewards."""
        if sequence_ids is None and isinstance(advantages, GroupRewards):
            sequence_ids = advantages.sequence_ids
        weights = token_weights(
            self.reduction, targets != self.head.ignore_index, sequence_ids,
            num_tokens=num_tokens, num_sequences=num_sequences, max_length=self.max_length,
        )  # fmt: skip
        return linear_policy_loss(
            hidden, weight, targets, advantages, objective=self.objective, token_weights=weights,
            old_logprobs=old_logprobs, ref_logprobs=ref_logprobs, head=self.head, backend=self.backend,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return f"objective={self.objective!r}, reduction={self.reduction!r}, backend={self.backend!r}"
