"""The kernel of group advantages is that of losses/advantages.py."""

from __future__ import annotations

import pytest
import torch
import triton

from gft_kernels import GroupRewards, group_advantages, linear_policy_loss
from gft_kernels.engines.triton import advantages

from ...helpers.problems import make_problem

SCALES = ("group", "batch", "none")


def kernel_advantages(rewards, group_ids, scale="group", singleton="reward", eps=1e-6, block_b=None) -> torch.Tensor:
    groups = GroupRewards(rewards, group_ids, torch.empty(0, dtype=torch.int64), scale, singleton, eps)
    if block_b is None:
        return advantages.group_advantages(groups)
    out, options = torch.empty_like(rewards), {"KEEP_SINGLE": singleton == "reward", "EPS": eps}
    scale_of = advantages._SCALES[scale].value
    advantages.group_advantages_kernel[(triton.cdiv(len(rewards), 16),)](
        rewards, group_ids, out, len(rewards), SCALE=scale_of, **options, BLOCK_N=16, BLOCK_B=block_b
    )
    return out


def ragged(dtype: torch.dtype, ids: torch.dtype = torch.int64) -> tuple[torch.Tensor, torch.Tensor]:
    """37 responses (two blocks of 16 and five): groups of 1 to 9 with scattered ids, one without
    spread, two of one response.
    """
    group_ids = torch.repeat_interleave(
        torch.tensor([70, -3, 5, 12, 900, 6, 8, 0]), torch.tensor([9, 1, 8, 5, 1, 6, 3, 4])
    )
    rewards = torch.rand(37)
    rewards[group_ids == 5] = 0.35
    order = torch.randperm(37)
    return rewards[order].to(dtype), group_ids[order].to(ids)


@pytest.mark.parametrize("ids", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("singleton", ["reward", "zero"])
@pytest.mark.parametrize("scale", SCALES)
def test_group_advantage_is_that_of_advantages(scale, singleton, dtype, ids):
    rewards, group_ids = ragged(dtype, ids)
    got = kernel_advantages(rewards, group_ids, scale, singleton)
    want = group_advantages(rewards.double(), group_ids, scale=scale, singleton=singleton)
    digits = 1e-12 if dtype == torch.float64 else 2e-6
    torch.testing.assert_close(got.double(), want, rtol=digits, atol=digits)
    assert torch.equal(got == 0, want == 0)


@pytest.mark.parametrize("eps", [1e-6, 0.5])
@pytest.mark.parametrize("block_b", [16, 64])  # B over the block, and under it
def test_group_advantage_adds_eps_whatever_the_block(block_b, eps):
    rewards, group_ids = ragged(torch.float64)
    want = group_advantages(rewards, group_ids, eps=eps)
    torch.testing.assert_close(
        kernel_advantages(rewards, group_ids, eps=eps, block_b=block_b), want, rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_group_advantage_of_equal_rewards_is_exactly_zero(dtype, scale):
    # Eight, and sizes whose sum is rounded: the mean of seven 0.35s is not 0.35, their std not 0:
    # the formula alone is no zero.
    sizes = torch.tensor([8, 7, 5, 11, 3])
    rewards = torch.cat([torch.full((34,), 0.35), torch.tensor([0.0, 1.0])]).to(dtype)
    got = kernel_advantages(rewards, torch.cat([torch.repeat_interleave(sizes), torch.tensor([9, 9])]), scale)
    assert torch.equal(got[:34], torch.zeros(34, dtype=dtype))
    assert (got[34] < 0) & (got[35] > 0)


@pytest.mark.parametrize("scale", SCALES)
def test_group_advantage_under_a_common_offset_keeps_its_digits(scale):
    # Quarters on 2^16: rewards and sums of 37 are exact in fp32, the squares are 2^32 and would
    # leave nothing of a one-pass variance.
    quarters = (torch.rand(37) * 8).round() / 4
    _, group_ids = ragged(torch.float32)
    got = kernel_advantages(quarters + 2.0**16, group_ids, scale, "zero")
    want = group_advantages(quarters.double(), group_ids, scale=scale, singleton="zero")
    error = 2.0**16 * 2.0**-24  # a mean of 2^16 is rounded to 1/256
    torch.testing.assert_close(got.double(), want, rtol=0, atol=8 * error)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("singleton", ["reward", "zero"])
def test_group_advantage_of_a_batch_of_one(singleton, scale):
    got = kernel_advantages(torch.tensor([0.7]), torch.tensor([3]), scale, singleton)
    assert torch.equal(got, group_advantages(torch.tensor([0.7]), torch.tensor([3]), scale=scale, singleton=singleton))


@pytest.mark.parametrize("ids", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("scale", SCALES)
def test_linear_policy_loss_normalises_group_rewards_in_the_kernel(scale, ids):
    # 70 responses: more than two blocks of 32, and no multiple of one. Rows without spread are
    # skipped: chunks gather.
    problem = make_problem(50, 11, 37)
    rewards, group_ids = torch.rand(70).double(), torch.randint(9, (70,))
    rewards[group_ids == 4] = 0.35
    sequence_ids = torch.randint(70, (50,))
    groups = GroupRewards(
        rewards, group_ids.to(ids), torch.where(problem.targets == -100, 10**6, sequence_ids).to(ids), scale=scale
    )
    by_hand = group_advantages(rewards, group_ids, scale=scale)[sequence_ids]
    results = []
    for given in (groups, by_hand):
        hidden = problem.hidden.clone().requires_grad_()
        out = linear_policy_loss(hidden, problem.weight, problem.targets, given, backend="triton")
        out.loss.backward()
        results.append((out.loss.detach(), out.logprobs, out.coefficients, hidden.grad))
    torch.testing.assert_close(*results, rtol=1e-11, atol=1e-13, equal_nan=True)
    assert (by_hand[problem.targets != -100] == 0).any()
    assert results[0][0] != 0
