"""A GRPOConfig is computed as it says, or refused by the names of what is not."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata

import pytest
import torch
from trl import GRPOConfig
from trl.trainer.base_config import _BaseConfig

from gft_kernels import cispo, gft, grpo, kl, sft
from gft_kernels.integrations.trl import GFTTrainer, objective_of

from . import tiny

SAID = {
    "dapo": ({}, grpo(0.2, 0.2)),
    "wider above": ({"epsilon": 0.1, "epsilon_high": 0.28}, grpo(0.1, 0.28)),
    "dual clip": ({"delta": 3.0, "loss_type": "bnpo"}, grpo(0.2, 0.2, 3.0)),
    "cispo": ({"loss_type": "cispo", "epsilon_high": 5.0}, cispo(1.0, 4.0)),
    "corrected kl": ({"beta": 0.1}, grpo() + kl(0.1, corrected=True)),
    "kl": ({"beta": 0.1, "use_bias_correction_kl": False, "loss_type": "grpo"}, grpo() + kl(0.1)),
}


@pytest.mark.parametrize("name", SAID)
def test_objective_of_a_config(name, tmp_path):
    options, want = SAID[name]
    assert repr(objective_of(tiny.config(tmp_path, **options))) == repr(want)


REFUSED = {
    "importance_sampling_level": {"importance_sampling_level": "sequence"},
    "top_entropy_quantile": {"top_entropy_quantile": 0.2},
    "entropy_coef": {"entropy_coef": 0.01},
    "use_adaptive_entropy": {"use_adaptive_entropy": True},
    "off_policy_mask_threshold": {"off_policy_mask_threshold": 0.5},
    "loss_type='sapo'": {"loss_type": "sapo"},
    "loss_type='vespo'": {"loss_type": "vespo"},
    "loss_type='luspo'": {"loss_type": "luspo"},
    "epsilon_high=None": {"loss_type": "cispo"},
    "epsilon_high=0.28": {"loss_type": "cispo", "epsilon_high": 0.28},
    "delta=1.1": {"delta": 1.1},
}


@pytest.mark.parametrize("name", REFUSED)
def test_objective_of_refuses_by_name(name, tmp_path):
    with pytest.raises(ValueError, match=name):
        objective_of(tiny.config(tmp_path, **REFUSED[name]))


def test_objective_of_names_all_at_once(tmp_path):
    config = tiny.config(tmp_path, entropy_coef=0.1, top_entropy_quantile=0.2, loss_type="sapo")
    with pytest.raises(ValueError, match=r"top_entropy_quantile.*entropy_coef.*sapo"):
        objective_of(config)


# Every field of GRPOConfig that is TRL's own, and who answers for it.
OBJECTIVE = {"epsilon", "epsilon_high", "delta", "beta", "use_bias_correction_kl", "loss_type"}
TRAINER = {"vllm_importance_sampling_correction", "temperature", "num_iterations", "mask_truncated_completions"} | {
    "steps_per_generation",
    "max_completion_length",
    "router_aux_loss_coef",
}
OF_REFUSED_LOSSES = {"sapo_temperature_neg", "sapo_temperature_pos"} | {
    f"{name}_{sign}" for name in ("vespo_k", "vespo_lambda") for sign in ("pos", "neg")
}
OF_REFUSED_OPTIONS = {"entropy_coef_min", "entropy_coef_max", "entropy_coef_delta", "entropy_target"}
BEFORE_THE_LOSS = """
model_init_kwargs trust_remote_code disable_dropout remove_unused_columns num_generations
num_generations_eval ds3_gather_for_generation shuffle_dataset pad_to_multiple_of
generation_batch_size top_p top_k min_p generation_kwargs chat_template_kwargs repetition_penalty
cache_implementation use_vllm vllm_mode vllm_model_impl vllm_enable_sleep_mode
vllm_structured_outputs_regex vllm_server_base_url vllm_server_host vllm_server_port
vllm_server_timeout vllm_group_port vllm_gpu_memory_utilization vllm_max_model_length
vllm_tensor_parallel_size reward_weights multi_objective_aggregation scale_rewards sync_ref_model
ref_model_mixup_alpha ref_model_sync_steps max_tool_calling_iterations
vllm_importance_sampling_mode vllm_importance_sampling_clip_max vllm_importance_sampling_clip_min
vllm_importance_sampling_cap log_completions log_multimodal num_completions_to_print
log_unique_prompts log_completions_hub_repo use_transformers_continuous_batching
transformers_continuous_batching_config use_transformers_paged learning_rate
"""  # rollouts, rewards, advantages, models, logs: TRL's own code runs


def test_every_option_of_trl_is_computed_or_refused():
    """A field that a new TRL adds is in none of the lists: somebody must look at it."""
    from gft_kernels.integrations.trl.objective import NOT_COMPUTED, NOT_FUSED

    own = {field.name for field in dataclasses.fields(GRPOConfig)} - {f.name for f in dataclasses.fields(_BaseConfig)}
    known = OBJECTIVE | TRAINER | OF_REFUSED_LOSSES | OF_REFUSED_OPTIONS | set(BEFORE_THE_LOSS.split())
    assert own - known == set(NOT_COMPUTED) | (set(NOT_FUSED) & own)


BESIDE = {
    "epsilon=0.3": ({"epsilon": 0.3}, gft(0.7)),
    "epsilon_high=0.28": ({"epsilon_high": 0.28}, gft(0.7)),
    "delta=3.0": ({"delta": 3.0}, gft(0.7)),
    "loss_type='cispo'": ({"loss_type": "cispo", "epsilon_high": 5.0}, gft(0.7)),
    "loss_type='sapo'": ({"loss_type": "sapo"}, gft(0.7)),
    "entropy_coef=0.1": ({"entropy_coef": 0.1}, gft(0.7)),
    "set beta": ({}, gft(0.7) + kl(0.1)),
    "use_liger_kernel=True": ({"use_liger_kernel": True}, gft(0.7)),
    "cast_lm_head_to_fp32=True": ({"cast_lm_head_to_fp32": True}, None),
    "rectify='given'": ({}, sft()),
}


@pytest.mark.parametrize("name", BESIDE)
def test_trainer_refuses_what_would_have_no_effect(name, tmp_path):
    options, objective = BESIDE[name]
    more = {"rectify": "given"} if name.startswith("rectify") else {}
    with pytest.raises(ValueError, match=name):
        GFTTrainer(
            tiny.folder_with_model(tmp_path),
            tiny.length_reward,
            tiny.config(tmp_path, **options),
            train_dataset=tiny.prompts(),
            processing_class=tiny.tokenizer(),
            objective=objective,
            **more,
        )


@pytest.mark.parametrize("objective", ["gft", type(gft(0.7)), 0.7], ids=["a name", "a class", "a number"])
def test_trainer_refuses_what_is_no_objective(objective, tmp_path):
    with pytest.raises(TypeError, match=r"give a loss function|is a class: call it, gft\(\)"):
        GFTTrainer("not loaded", tiny.length_reward, tiny.config(tmp_path), objective=objective)


def test_trainer_refuses_a_tau_of_every_token(tmp_path):
    with pytest.raises(ValueError, match="rectify='given'"):
        GFTTrainer("not loaded", tiny.length_reward, tiny.config(tmp_path), objective=gft(torch.rand(9)))


@pytest.mark.parametrize("found", ["1.15.2", "0.25.0", None])
def test_import_names_the_trl_it_needs(found, monkeypatch):
    import gft_kernels.integrations.trl as ours

    def version(name):
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(ImportError, match=r"TRL 1\.16 and later"):
        importlib.reload(ours)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.0.0.dev0")
    importlib.reload(ours)
