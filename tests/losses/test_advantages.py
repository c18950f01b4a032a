"""Group advantages against the definition, by the statistics module, a group at a time."""

from __future__ import annotations

import statistics

import pytest
import torch

from gft_kernels import GroupRewards, group_advantages, linear_policy_loss

from ..helpers.problems import make_problem

# Groups of 4, 1, 3, 2 and 1 responses, interleaved, with ids that are neither sorted nor
# consecutive; group 2 has no spread.
GROUP_IDS = torch.tensor([7, -3, 40, 7, 2, 40, 7, 2, 99, 40, 7])
REWARDS = torch.tensor([1.0, 0.3, 0.0, 0.0, 0.5, 1.0, 0.25, 0.5, -2.0, 0.75, 1.0], dtype=torch.float64)


def defined(scale: str, singleton: str, eps: float = 1e-6) -> list[float]:
    rewards, ids = REWARDS.tolist(), GROUP_IDS.tolist()
    advantages = []
    for reward, i in zip(rewards, ids, strict=True):
        group = [r for r, j in zip(rewards, ids, strict=True) if i == j]
        if len(group) == 1:
            advantages.append(reward if singleton == "reward" else 0.0)
        elif scale == "none":
            advantages.append(reward - statistics.mean(group))
        else:
            spread = statistics.stdev(group if scale == "group" else rewards)
            advantages.append((reward - statistics.mean(group)) / (spread + eps))
    return advantages


@pytest.mark.parametrize("singleton", ["reward", "zero"])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("eps", [1e-6, 0.5])
def test_group_advantages_follow_the_definition(scale, singleton, eps):
    got = group_advantages(REWARDS, GROUP_IDS, scale=scale, singleton=singleton, eps=eps)
    torch.testing.assert_close(
        got, torch.tensor(defined(scale, singleton, eps), dtype=torch.float64), rtol=1e-12, atol=1e-15
    )


def test_group_advantages_defaults_are_group_reward_and_1e_6():
    assert torch.equal(
        group_advantages(REWARDS, GROUP_IDS),
        group_advantages(REWARDS, GROUP_IDS, scale="group", singleton="reward", eps=1e-6),
    )


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_group_advantages_equal_rewards_are_exactly_zero(dtype, scale):
    # In fp32 the mean of eight 0.35s is not 0.35 and their std is 3e-8, so that the formula alone
    # gives thousands.
    rewards = torch.cat([torch.full((8,), 0.35), torch.tensor([0.0, 1.0])]).to(dtype)
    ids = torch.tensor([5] * 8 + [1] * 2)
    got = group_advantages(rewards, ids, scale=scale)
    assert torch.equal(got[:8], torch.zeros(8, dtype=dtype))
    assert (got[8] < 0) & (got[9] > 0)
    assert got.dtype == dtype


def test_group_advantages_nearly_equal_rewards_are_not_zero():
    rewards = torch.tensor([0.35, 0.35 + 1e-3, 0.35, 0.35])
    assert (group_advantages(rewards, torch.zeros(4, dtype=torch.long)) != 0).all()


def test_group_advantages_order_of_responses_does_not_matter():
    order = torch.randperm(len(REWARDS))
    torch.testing.assert_close(
        group_advantages(REWARDS[order], GROUP_IDS[order]),
        group_advantages(REWARDS, GROUP_IDS)[order],
        rtol=1e-14,
        atol=1e-15,
    )


def test_group_advantages_single_demonstration_is_sft():
    assert torch.equal(group_advantages(torch.ones(3), torch.arange(3)), torch.ones(3))


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_group_advantages_of_nothing_and_of_one_response(scale):
    assert group_advantages(torch.zeros(0), torch.zeros(0, dtype=torch.long), scale=scale).shape == (0,)
    assert (
        group_advantages(torch.tensor([0.7]), torch.tensor([3]), scale=scale).tolist() == torch.tensor([0.7]).tolist()
    )


def test_group_advantages_carry_no_gradient():
    assert not group_advantages(REWARDS.clone().requires_grad_(), GROUP_IDS).requires_grad


@pytest.mark.parametrize(
    ("rewards", "group_ids", "options", "error", "message"),
    [
        (REWARDS, GROUP_IDS[:3], {}, ValueError, r"must both be \[B\]"),
        (REWARDS[None], GROUP_IDS[None], {}, ValueError, r"must both be \[B\]"),
        (REWARDS.long(), GROUP_IDS, {}, TypeError, "floating point"),
        (REWARDS, GROUP_IDS.double(), {}, TypeError, "group_ids must be integers"),
        (REWARDS, GROUP_IDS > 0, {}, TypeError, "group_ids must be integers"),
        (REWARDS.index_fill(0, torch.tensor(4), torch.nan), GROUP_IDS, {}, ValueError, r"rewards\[4\] = nan"),
        (REWARDS.index_fill(0, torch.tensor(9), torch.inf), GROUP_IDS, {}, ValueError, r"rewards\[9\] = inf"),
        (REWARDS, GROUP_IDS, {"scale": "std"}, ValueError, "scale = 'std'"),
        (REWARDS, GROUP_IDS, {"singleton": "one"}, ValueError, "singleton = 'one'"),
    ],
)
def test_group_advantages_refuse(rewards, group_ids, options, error, message):
    with pytest.raises(error, match=message):
        group_advantages(rewards, group_ids, **options)


def test_group_rewards_reach_every_token_of_the_loss():
    problem = make_problem(50, 11, 37)
    sequence_ids = torch.randint(len(REWARDS), (50,))
    by_hand = torch.tensor(defined("none", "zero"), dtype=torch.float64)[sequence_ids]
    garbage = torch.where(problem.targets == -100, 10**6, sequence_ids)  # masked rows may hold anything
    rewards = GroupRewards(REWARDS, GROUP_IDS, garbage, scale="none", singleton="zero")
    got = linear_policy_loss(*problem[:2], problem.targets, rewards)
    want = linear_policy_loss(*problem[:2], problem.targets, by_hand)
    torch.testing.assert_close(got.loss, want.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(got.coefficients, want.coefficients, rtol=1e-12, atol=1e-15)
    assert want.loss != 0


@pytest.mark.parametrize("bad", [-1, 11])
def test_group_rewards_refuse_an_unknown_sequence(bad):
    problem = make_problem(50, 11, 37, masked=0)
    ids = torch.zeros(50, dtype=torch.long).index_fill(0, torch.tensor(17), bad)
    with pytest.raises(ValueError, match=rf"sequence_ids\[17\] = {bad} is outside 0..10"):
        linear_policy_loss(*problem[:2], problem.targets, GroupRewards(REWARDS, GROUP_IDS, ids))
    with pytest.raises(ValueError, match=r"one id a token"):
        linear_policy_loss(*problem[:2], problem.targets, GroupRewards(REWARDS, GROUP_IDS, ids[:49]))


def test_group_rewards_of_a_masked_batch_without_responses():
    problem = make_problem(5, 4, 7)
    none = GroupRewards(torch.zeros(0), torch.zeros(0, dtype=torch.long), torch.zeros(5, dtype=torch.long))
    assert linear_policy_loss(*problem[:2], torch.full((5,), -100), none).loss == 0


def test_group_advantages_of_16_bit_rewards_are_computed_in_fp32():
    """Squares of fp16 rewards overflow, and bf16 sums lose two digits."""
    for dtype in (torch.float16, torch.bfloat16):
        rewards = torch.tensor([0.0, 300.0, 300.0, 0.0, 300.0, 300.0, 300.0], dtype=dtype)
        found = group_advantages(rewards, torch.zeros(7, dtype=torch.long))
        expected = group_advantages(rewards.double(), torch.zeros(7, dtype=torch.long))
        assert found.dtype == dtype
        torch.testing.assert_close(found, expected.to(dtype), rtol=0, atol=0)


def test_group_rewards_of_16_bits_give_unrounded_advantages():
    rewards, ids = torch.tensor([0.0, 1.0, 0.25]), torch.zeros(3, dtype=torch.long)
    half = GroupRewards(rewards.half(), ids, torch.arange(3)).per_token(
        torch.ones(3, dtype=torch.bool), GroupRewards.per_sequence
    )
    assert torch.equal(half, group_advantages(rewards, ids))
