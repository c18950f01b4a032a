"""Fused policy losses on a language-model head, without the [N, V] logits."""

from .head import Backend, Head, LogProbs, LowRank, PolicyLoss, Sparse
from .losses.advantages import GroupRewards, group_advantages
from .losses.objectives import dft, gft, reinforce, sft
from .losses.ratios import cispo, grpo, gspo, kl
from .losses.reductions import token_weights
from .ops.linear_logprob import linear_logprob
from .ops.linear_policy_loss import LinearPolicyLoss, linear_policy_loss
from .ops.logits_policy_loss import logits_policy_loss

__version__ = "0.2.0"
__all__ = [
    "Backend",
    "GroupRewards",
    "Head",
    "LinearPolicyLoss",
    "LogProbs",
    "LowRank",
    "PolicyLoss",
    "Sparse",
    "cispo",
    "dft",
    "gft",
    "group_advantages",
    "grpo",
    "gspo",
    "kl",
    "linear_logprob",
    "linear_policy_loss",
    "logits_policy_loss",
    "reinforce",
    "sft",
    "token_weights",
]
