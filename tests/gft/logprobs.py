"""Log-probs of responses as the trainer has them."""

from __future__ import annotations

from gft.collate import collate
from gft.groups import Member
from gft.policy import Policy
from gft.rollout import Rollout
from gft_kernels import sft
from gft_kernels.integrations.hf import PolicyBatch


def trainers_logprobs(policy: Policy, prompts: list[list[int]], rollouts: list[Rollout]) -> list[list[float]]:
    """Log-probs of each response by the head that the policy is trained with."""
    members = [Member(0, "self", p, r.tokens, "", False, None) for p, r in zip(prompts, rollouts, strict=True)]
    rows = collate(members, 0, policy.device)
    found = policy.loss(rows.inputs, PolicyBatch(rows.targets, sft())).logprobs
    return [row[kept].tolist() for row, kept in zip(found, rows.trained, strict=True)]
