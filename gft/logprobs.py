"""Log-probs of responses under a policy as it is: old ones, and those of a reference policy."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gft_kernels.integrations.hf import PolicyBatch

from .collate import collate
from .groups import Member
from .model.layers import evaluating
from .model.policy import Policy
from .settings.config import TrainConfig
from .stop import check


@torch.no_grad()
def token_logprobs(policy: Policy, members: Sequence[Member], config: TrainConfig) -> list[list[float]]:
    """log p of every response token, at the temperature of the head, without dropout.

    Cost: a forward pass of the members.
    """
    found: dict[int, list[float]] = {}
    order = sorted(range(len(members)), key=lambda i: len(members[i].prompt) + len(members[i].response))
    with evaluating(policy.model):
        for start in range(0, len(order), config.optim.micro_batch):
            check()
            chosen = order[start : start + config.optim.micro_batch]
            rows = collate([members[i] for i in chosen], policy.tokenizer.pad_token_id, policy.device)
            result = policy.loss(rows.inputs, PolicyBatch(rows.targets, backend=config.head_backend()))
            lengths = [len(members[i].response) for i in chosen]
            parts = result.logprobs[rows.trained].split(lengths)
            found |= {i: part.tolist() for i, part in zip(chosen, parts, strict=True)}
    return [found[i] for i in range(len(members))]
