"""The eager engine: full [N, V] logits and autograd. It is the oracle of tests and benchmarks.

Cost: 6NDV and several [N, V] tensors. 16-bit inputs give 16-bit logits, as a model's own head does.
fp64 inputs stay fp64. It is the one engine that can be differentiated twice.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..head import Head, LogProbs, Operands
from ..losses.advantages import GroupRewards
from ..losses.objectives import losses_and_coefficients
from .accumulate import Wanted, compute_dtype
from .contract import LossPlan, LossRows, Plan, Scores

name = "eager"
recorded = True


def head_logits(operands: Operands, head: Head) -> Tensor:  # [N, V]
    """Logits after every transform, in the compute dtype."""
    hidden, weight, bias, low_hidden, low_weight = operands
    dtype = torch.promote_types(hidden.dtype, weight.dtype)
    bias = None if bias is None else bias.to(dtype)
    with torch.autocast(hidden.device.type, enabled=False):
        logits = F.linear(hidden.to(dtype), weight.to(dtype), bias).to(compute_dtype(hidden, weight))
        if low_hidden is not None and low_weight is not None:
            low = torch.promote_types(low_hidden.dtype, low_weight.dtype)
            logits = logits + F.linear(low_hidden.to(low), low_weight.to(low)).to(logits.dtype)
        logits = logits * head.scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    return logits / head.temperature


def logits_scores(logits: Tensor, targets: Tensor, head: Head) -> LogProbs:  # [N] each
    """Log-probs and entropies of transformed logits [N, V], 0 at masked rows."""
    log_p = logits.log_softmax(-1)
    valid = targets != head.ignore_index
    of_target = log_p.gather(1, torch.where(valid, targets, 0)[:, None]).squeeze(1)
    entropy = -(log_p.exp() * log_p.masked_fill(log_p == -torch.inf, 0)).sum(-1)
    return LogProbs(torch.where(valid, of_target, 0), torch.where(valid, entropy, 0))


def group_advantages(groups: GroupRewards) -> Tensor:
    return groups.per_sequence()


def score(operands: Operands, plan: Plan) -> Scores:
    return _chosen(head_logits(operands, plan.head), plan)


def loss(operands: Operands, plan: LossPlan, wanted: Wanted) -> tuple[LossRows, None]:
    return _loss_rows(head_logits(operands, plan.head), plan), None


def logits_loss(logits: Tensor, plan: LossPlan, grad: Tensor | None) -> tuple[LossRows, None]:
    return _loss_rows(logits.to(plan.dtype) / plan.head.temperature, plan), None


def _chosen(logits: Tensor, plan: Plan) -> Scores:
    """The scores of the plan's rows."""
    found = logits_scores(logits, plan.targets, plan.head)
    logprobs, entropy = found if plan.rows is None else (x[plan.rows] for x in found)
    return Scores(logprobs, entropy, logprobs.new_empty(0))


def _loss_rows(logits: Tensor, plan: LossPlan) -> LossRows:
    logprobs, entropy, _ = _chosen(logits, plan)
    loss = (plan.weights * plan.objective(logprobs, **plan.per_token)).sum()
    _, coefficients = losses_and_coefficients(plan.objective, logprobs, plan.per_token)
    return LossRows(loss, logprobs.detach(), entropy.detach(), coefficients)
