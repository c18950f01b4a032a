"""The problem of the tests of compiled programs, in fp32."""

from __future__ import annotations

import torch

from gft_kernels import GroupRewards

from .problems import make_problem

PROBLEM = make_problem(33, 8, 40, dtype=torch.float32)
REWARDS = GroupRewards(torch.tensor([0.0, 1.0, 0.5, 1.0, 0.0]), torch.tensor([0, 0, 0, 1, 1]), PROBLEM.sequence_ids)
OLD, REF = PROBLEM.old_logprobs, PROBLEM.ref_logprobs


def leaves(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    """Hidden, weight and bias as fresh leaves."""
    return tuple(x.clone().to(dtype).requires_grad_() for x in PROBLEM[:3])
