"""Group advantages as verl's estimator, against verl's own grpo."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from verl.trainer.config import AlgoConfig, RolloutCorrectionConfig
from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage, get_adv_estimator_fn

from gft_kernels.integrations.verl import advantages

GROUPS = np.array(["b", "a", "b", "b", "a", "d", "c", "c", "c", "a", "b", "c"], dtype=object)  # d is alone
LENGTHS = torch.tensor([4, 1, 3, 2, 4, 4, 2, 1, 3, 4, 4, 2])


def batch(scores=None):
    """(token_level_rewards, response_mask): the reward on the last token, as verl has it."""
    mask = (torch.arange(4) < LENGTHS[:, None]).long()
    rewards = torch.zeros(mask.shape)
    scores = torch.randn(len(LENGTHS)) if scores is None else scores
    rewards[torch.arange(len(LENGTHS)), LENGTHS - 1] = scores
    return rewards, mask


@pytest.mark.parametrize("scaled", [True, False])
def test_advantages_are_those_of_verls_grpo(scaled):
    rewards, mask = batch()
    want, _ = compute_grpo_outcome_advantage(rewards.clone(), mask, GROUPS, norm_adv_by_std_in_grpo=scaled)
    got, returns = advantages(rewards, mask, GROUPS, AlgoConfig(norm_adv_by_std_in_grpo=scaled))
    torch.testing.assert_close(got, want, rtol=2e-6, atol=3e-7)  # a group of one: R here, R / (1 + 1e-6) there
    assert got is returns
    several = torch.as_tensor(GROUPS != "d")
    assert (got - want)[several].abs().max() <= 3e-7
    assert got.abs().max() > 1


def test_verls_own_call_reaches_the_estimator():
    """As `compute_advantage` of verl's trainer calls whatever is neither gae nor grpo."""
    from verl.trainer.ppo.ray_trainer import compute_advantage

    rewards, mask = batch()
    data = SimpleNamespace(
        batch={"token_level_rewards": rewards, "response_mask": mask}, non_tensor_batch={"uid": GROUPS}
    )
    for config in (AlgoConfig(), OmegaConf.structured(AlgoConfig())):
        found = compute_advantage(data, adv_estimator="gft", config=config)
        assert torch.equal(found.batch["advantages"], advantages(rewards, mask, GROUPS)[0])


def test_dead_group_has_no_advantage():
    rewards, mask = torch.full((8, 1), 0.1), torch.ones(8, 1)
    index = np.array(["x"] * 8, dtype=object)
    assert not advantages(rewards, mask, index)[0].any()
    assert compute_grpo_outcome_advantage(rewards.clone(), mask, index)[0].abs().max() > 1e-3  # why it matters


def test_registered_under_its_name():
    assert get_adv_estimator_fn("gft") is advantages


def test_prompts_may_be_named_by_anything():
    rewards, mask = batch()
    numbers = np.unique(GROUPS.astype(str), return_inverse=True)[1]
    want = advantages(rewards, mask, GROUPS)[0]
    for index in (numbers, torch.as_tensor(numbers), list(GROUPS)):
        assert torch.equal(advantages(rewards, mask, index)[0], want)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gamma": 0.9, "lam": 0.95}, "gamma=0.9 .*; lam=0.95"),
        ({"use_pf_ppo": True}, "use_pf_ppo=True"),
        ({"gdpo_reward_keys": ["format"]}, r"gdpo_reward_keys=\['format'\]"),
        ({"gdpo_reward_weights": [1.0]}, "gdpo_reward_weights"),
        ({"rollout_correction": RolloutCorrectionConfig.bypass_pg_is()}, "rollout_correction.rollout_is='sequence'"),
        ({"rollout_correction": RolloutCorrectionConfig.bypass_ppo_clip_geo_rs()}, "rollout_correction.rollout_rs="),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_options_without_effect_are_refused_by_name(changes, said):
    with pytest.raises(ValueError, match=f"options of the algorithm that would have no effect: .*{said}"):
        advantages(*batch(), GROUPS, AlgoConfig(**changes))


@pytest.mark.parametrize(
    "correction", [None, RolloutCorrectionConfig.decoupled_token_is(), RolloutCorrectionConfig.bypass_ppo_clip()]
)
def test_corrections_that_verl_makes_itself_are_not_refused(correction):
    advantages(*batch(), GROUPS, AlgoConfig(rollout_correction=correction))


def test_batch_without_prompts_is_refused():
    with pytest.raises(ValueError, match="no 'uid'"):
        advantages(*batch())


def test_reward_that_is_not_finite_is_refused():
    scores = torch.randn(len(LENGTHS))
    scores[3] = torch.nan
    with pytest.raises(ValueError, match=r"rewards\[3\] = nan"):
        advantages(*batch(scores), GROUPS)
