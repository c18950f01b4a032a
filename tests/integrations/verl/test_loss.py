"""Policy losses against verl's own, and what of a config is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from verl import trainer
from verl.trainer.config import RolloutCorrectionConfig
from verl.trainer.ppo.core_algos import get_adv_estimator_fn, get_policy_loss_fn
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.config import PolicyLossConfig

from gft_kernels import cispo, gft, grpo, gspo, kl, reinforce, sft
from gft_kernels.integrations.verl import GFTLossConfig, advantages, policy_loss

from .tiny import GLOBAL, MODES, actor_config, arguments

VERLS = {
    "vanilla": grpo(0.2, 0.2, dual_clip=3.0),
    "cispo": cispo(0.2, 0.2),
    "gpg": reinforce(),
}
RECIPE = ["policy_loss.loss_mode=gft", "policy_loss._target_=gft_kernels.integrations.verl.GFTLossConfig"]
FOLDER = str(Path(trainer.__file__).parent / "config")


def run(loss, given, **options):
    """(loss, gradient of log_prob, metrics)."""
    given = {**given, "log_prob": given["log_prob"].clone().requires_grad_()}
    value, metrics = loss(**given, **{"config": actor_config(), **options})
    (gradient,) = torch.autograd.grad(value, given["log_prob"])
    return value, gradient, metrics


@pytest.mark.parametrize("info", GLOBAL, ids=("of the batch", "of two ranks"))
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", VERLS)
def test_policy_loss_is_bit_equal_to_verls_own(name, mode, weighted, info):
    given = arguments()
    weights = torch.rand(given["log_prob"].shape) * 2 if weighted else None
    options = {"loss_agg_mode": mode, "rollout_is_weights": weights, "config": actor_config(global_batch_info=info)}
    want, want_gradient, want_metrics = run(get_policy_loss_fn(name), given, **options)
    got, gradient, metrics = run(policy_loss(VERLS[name]), given, **options)
    assert torch.equal(got, want)
    assert torch.equal(gradient, want_gradient)
    assert gradient.abs().max() > 0
    common = {key: metrics[key] for key in want_metrics if key in metrics}
    assert common == {key: want_metrics[key] for key in common}
    assert set(want_metrics) - set(common) <= {"actor/pg_clipfrac_lower"}  # of cispo, which has none: 0 there


def test_ratios_of_the_test_lie_on_every_side_of_the_clips():
    metrics = run(policy_loss(VERLS["vanilla"]), arguments())[2]
    assert 0 < metrics["actor/pg_clipfrac"] < 1
    assert 0 < metrics["actor/pg_clipfrac_lower"] < 1


@pytest.mark.parametrize("mode", MODES)
def test_gft_is_the_papers_formula_under_every_aggregation(mode):
    given = arguments()
    p, advantages, mask = given["log_prob"].exp(), given["advantages"], given["response_mask"]
    assert (p[mask] < 0.7).any()
    assert (p[mask] > 0.7).any()
    counts = mask.sum(1).clamp(min=1)
    responses = (mask.sum(1) > 0).sum()
    weight = {
        "token-mean": mask / mask.sum(),
        "token-sum": mask.float(),
        "seq-mean-token-sum": mask / responses,
        "seq-mean-token-mean": mask / (responses * counts[:, None]),
        "seq-mean-token-sum-norm": mask / (responses * mask.shape[1]),
    }[mode]
    coefficient = -weight * advantages * torch.where(p < 0.7, p, 1.0)
    got, gradient, metrics = run(get_policy_loss_fn("gft"), given, loss_agg_mode=mode)
    torch.testing.assert_close(got, (coefficient * given["log_prob"]).sum())
    torch.testing.assert_close(gradient, coefficient)
    assert metrics["actor/rectified_fraction"] == pytest.approx((p[mask] < 0.7).float().mean().item())
    assert metrics["actor/nll"] == pytest.approx(-given["log_prob"][mask].mean().item())


@pytest.mark.parametrize("objective", [gft(), grpo(), sft(), lambda lp, advantages, **_: -advantages * lp])
def test_padding_may_hold_anything(objective):
    given = arguments()
    padded = {
        name: torch.where(given["response_mask"], x, torch.nan) if x.is_floating_point() else x
        for name, x in given.items()
    }
    for mode in MODES:
        want, got = (run(policy_loss(objective), x, loss_agg_mode=mode) for x in (given, padded))
        assert torch.equal(got[0], want[0])
        assert torch.equal(got[1], want[1])
        assert got[2] == want[2]


@pytest.mark.parametrize("mode", MODES)
def test_batch_without_a_token_has_loss_zero_and_a_graph(mode):
    given = arguments()
    given["response_mask"] = torch.zeros_like(given["response_mask"])
    info = {"dp_size": 2, "batch_num_tokens": 41, "global_batch_size": 9}  # other ranks have some
    value, gradient, metrics = run(
        policy_loss(gft()), given, loss_agg_mode=mode, config=actor_config(global_batch_info=info)
    )
    assert value == 0
    assert not gradient.any()
    assert set(metrics.values()) == {0.0}


def test_log_probs_in_bf16_are_worked_on_in_fp32():
    given = arguments()
    rough = {**given, "log_prob": given["log_prob"].bfloat16()}
    want = run(policy_loss(gft()), {**given, "log_prob": rough["log_prob"].float()})
    got = run(policy_loss(gft()), rough)
    assert torch.equal(got[0], want[0])
    assert got[1].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"clip_ratio_high": 0.28}, r"clip_ratio_high=0.28 \(objective=GFT\(tau=0.7\) is in its place\)"),
        ({"clip_ratio": 0.1, "clip_ratio_low": 0.1}, "clip_ratio=0.1 .*; clip_ratio_low=0.1"),
        ({"clip_ratio_c": 10.0}, "clip_ratio_c=10.0"),
        ({"tau_pos": 0.7}, "tau_pos=0.7"),
        ({"tau_neg": 2.0}, "tau_neg=2.0"),
        ({"policy_loss": PolicyLossConfig(ppo_kl_coef=0.2)}, "policy_loss.ppo_kl_coef=0.2"),
        ({"policy_loss": PolicyLossConfig(dro_beta=0.2)}, "policy_loss.dro_beta=0.2"),
        (
            {"policy_loss": PolicyLossConfig(clip_cov_ratio=0.1, clip_cov_lb=0, clip_cov_ub=1)},
            "clip_cov_ratio=0.1.*lb.*ub",
        ),
        ({"policy_loss": PolicyLossConfig(kl_cov_ratio=0.1)}, "kl_cov_ratio=0.1"),
        (
            {"policy_loss": PolicyLossConfig(rollout_correction=RolloutCorrectionConfig.bypass_pg_is())},
            "rollout_correction.bypass_mode=True",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_options_without_effect_are_refused_by_name(changes, said):
    with pytest.raises(ValueError, match=f"options of the actor that would have no effect: .*{said}"):
        run(policy_loss(gft()), arguments(), config=actor_config(**changes))


def test_no_config_is_refused():
    with pytest.raises(ValueError, match="no config"):
        policy_loss(gft())(**arguments())


@pytest.mark.parametrize(
    ("objective", "error", "said"),
    [
        (gft, TypeError, r"is a class: call it, gft\(\)"),
        ("gft", TypeError, "give a loss function"),
        (gft() + kl(0.1), ValueError, "use_kl_loss=True"),
        (gft(torch.tensor([0.7, 0.0])), ValueError, r"tau of shape \(2,\)"),
        (gspo(), ValueError, "loss_mode=gspo"),
    ],
)
def test_objectives_that_verl_has_no_room_for_are_refused(objective, error, said):
    with pytest.raises(error, match=said):
        policy_loss(objective)


def test_tau_of_the_config_takes_the_place_of_the_one_installed():
    config = actor_config(policy_loss=GFTLossConfig(loss_mode="gft", tau=0.3))
    got = run(get_policy_loss_fn("gft"), arguments(), config=config)[0]
    assert torch.equal(got, run(policy_loss(gft(0.3)), arguments())[0])
    assert got != run(policy_loss(gft(0.7)), arguments())[0]


def test_tau_beside_another_objective_is_refused():
    config = actor_config(policy_loss=GFTLossConfig(loss_mode="gft", tau=0.3))
    with pytest.raises(ValueError, match=r"policy_loss.tau=0.3 \(objective=GRPO.*has none"):
        run(policy_loss(grpo()), arguments(), config=config)


def actor_of_command_line(*overrides: str):
    """What verl makes of options of its command line: its own files, its own way to dataclasses."""
    plain = ["actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1"]
    given = [x.replace("policy_loss", "actor_rollout_ref.actor.policy_loss") for x in overrides]
    with initialize_config_dir(FOLDER, version_base=None):
        config = compose("ppo_trainer", overrides=plain + given)
    return omega_conf_to_dataclass(config.actor_rollout_ref.actor)


def test_command_line_has_room_for_tau():
    assert actor_of_command_line(*RECIPE, "+policy_loss.tau=0.4").policy_loss.tau == 0.4
    assert actor_of_command_line(*RECIPE).policy_loss.tau == 0.7


def test_defaults_of_verls_files_are_not_refused():
    run(get_policy_loss_fn("gft"), arguments(), config=actor_of_command_line(RECIPE[0]))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (RECIPE[1:], "set loss_mode=gft"),
        ([*RECIPE, "+policy_loss.tau=nan"], "GFT.tau = nan"),
        ([*RECIPE, "+policy_loss.tau=high"], "tau='high': give a number"),
    ],
)
def test_tau_of_the_command_line_that_cannot_be_is_refused(overrides, said):
    with pytest.raises(Exception, match=said):  # hydra's own, around the one here
        actor_of_command_line(*overrides)


def test_example_is_a_command_line_that_verl_takes():
    """All but the run itself, which needs GPUs: verl's files, its dataclasses, our refusals."""
    script = Path(__file__).parents[3] / "examples" / "verl_gft.sh"
    files = {'"$model"': "m", '"$train"': "a.parquet", '"$test"': "b.parquet"}
    options = re.findall(r"^ {4}(\S+=\S+) \\$", script.read_text(), flags=re.MULTILINE)
    given = [f"{name}={files.get(value, value)}" for name, value in (x.split("=", 1) for x in options)]
    with initialize_config_dir(FOLDER, version_base=None):
        config = compose("ppo_trainer", overrides=given)
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    run(get_policy_loss_fn(actor.policy_loss.loss_mode), arguments(), config=actor)
    assert get_adv_estimator_fn(config.algorithm.adv_estimator) is advantages
    advantages(torch.tensor([[1.0], [0.0]]), torch.ones(2, 1), [0, 0], config.algorithm)
    assert config.actor_rollout_ref.model.use_fused_kernels
    assert config.actor_rollout_ref.model.fused_kernel_options.impl_backend == "torch"
