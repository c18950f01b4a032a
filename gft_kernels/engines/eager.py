"""The eager reference: full [N, V] logits, autograd everywhere, any float dtype.

Oracle of tests and benchmarks.

Cost: 6NDV and several [N, V] tensors. 16-bit inputs give 16-bit logits, as a model's own head does;
fp64 inputs stay fp64.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..head import Head, LogProbs, compute_dtype
from ..losses.objectives import losses_and_coefficients
from .contract import Backend, LossPlan, PlanResult, pick


def head_logits(hidden: Tensor, weight: Tensor, head: Head) -> Tensor:
    """[N, V] logits after every transform, in the compute dtype."""
    dtype = torch.promote_types(hidden.dtype, weight.dtype)
    bias = None if head.bias is None else head.bias.to(dtype)
    with torch.autocast(hidden.device.type, enabled=False):
        logits = F.linear(hidden.to(dtype), weight.to(dtype), bias).to(compute_dtype(hidden, weight)) * head.scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    return logits / head.temperature


def scores(logits: Tensor, targets: Tensor, head: Head) -> LogProbs:
    """Log-probs and entropies [N] of transformed logits [N, V], 0 at masked rows."""
    log_p = logits.log_softmax(-1)
    valid = targets != head.ignore_index
    of_target = log_p.gather(1, torch.where(valid, targets, 0)[:, None]).squeeze(1)
    entropy = -(log_p.exp() * log_p.masked_fill(log_p == -torch.inf, 0)).sum(-1)
    return LogProbs(torch.where(valid, of_target, 0), torch.where(valid, entropy, 0))


def linear_logprob(hidden: Tensor, weight: Tensor, targets: Tensor, head: Head) -> LogProbs:
    return scores(head_logits(hidden, weight, head), targets, head)


def policy_loss(hidden: Tensor, weight: Tensor, plan: LossPlan) -> PlanResult:
    return _plan_result(linear_logprob(hidden, weight, plan.targets, plan.head), plan)


def logits_loss(logits: Tensor, plan: LossPlan, inplace: bool) -> PlanResult:
    if inplace:
        raise ValueError("inplace=True needs a fused backend; backend='eager' keeps the logits for autograd.")
    return _plan_result(
        scores(logits.to(compute_dtype(logits, logits)) / plan.head.temperature, plan.targets, plan.head), plan
    )


def _plan_result(found: LogProbs, plan: LossPlan) -> PlanResult:
    logprobs, entropy = (pick(x, plan.rows) for x in found)
    loss = (plan.weights * plan.objective(logprobs, **plan.per_token)).sum()
    _, coefficients = losses_and_coefficients(plan.objective, logprobs, plan.per_token)
    return PlanResult(loss, logprobs.detach(), entropy.detach(), coefficients)


BACKEND = Backend("eager", linear_logprob, policy_loss, logits_loss)
