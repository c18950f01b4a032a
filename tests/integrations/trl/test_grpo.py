"""GFTTrainer's loss, gradients and metrics are TRL's, wherever both compute the same thing."""

from __future__ import annotations

import pytest
import torch
from trl import GRPOTrainer

from gft_kernels import gft
from gft_kernels.integrations.trl import GFTTrainer

from . import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="module", params=["llama"])
def model(folder, request):
    return tiny.folder_with_model(folder / request.param, request.param)


def made(kind, model, folder, options, **more):
    data = {"train_dataset": tiny.prompts(), "processing_class": tiny.tokenizer()}
    return kind(model, tiny.length_reward, tiny.config(folder, **options), **data, **more)


def assert_equal(ours, trls, inputs):
    """The same loss, gradients, and metrics of TRL's names."""
    got, want = tiny.loss_and_gradients(ours, dict(inputs)), tiny.loss_and_gradients(trls, dict(inputs))
    torch.testing.assert_close(got[0], want[0], rtol=1e-5, atol=1e-7)
    assert set(got[1]) == set(want[1])
    for name, gradient in want[1].items():
        torch.testing.assert_close(got[1][name], gradient, rtol=1e-5, atol=1e-5 * gradient.abs().max().item())
    assert want[0] != 0
    mode = "train" if ours.model.training else "eval"
    for name, values in trls._metrics[mode].items():
        assert ours._metrics[mode][name] == pytest.approx(values, rel=1e-5, abs=1e-7), name


OFF_POLICY = {"num_iterations": 2}
SEQUENCES = {**OFF_POLICY, "importance_sampling_level": "sequence", "epsilon": 0.05}
SETTINGS = {
    "dapo": {},
    "grpo": {"loss_type": "grpo"},
    "bnpo": {"loss_type": "bnpo"},
    "dr_grpo": {"loss_type": "dr_grpo"},
    "cispo": {"loss_type": "cispo", "epsilon_high": 1.5},
    "temperature": {"temperature": 0.7},
    "dapo, off policy": {**OFF_POLICY, "epsilon_high": 0.28},
    "delta": {**OFF_POLICY, "delta": 1.5},
    "cispo, off policy": {**OFF_POLICY, "loss_type": "cispo", "epsilon_high": 1.5},
    "kl corrected": {"beta": 0.1},
    "kl": {"beta": 0.1, "use_bias_correction_kl": False},
    "kl corrected, off policy": {**OFF_POLICY, "beta": 0.1, "loss_type": "grpo"},
    "kl, off policy, cispo": {**OFF_POLICY, "beta": 0.1, "loss_type": "cispo", "epsilon_high": 1.5},
    "luspo, off policy": {**OFF_POLICY, "loss_type": "luspo"},
    **{f"sequences, {kind}": {**SEQUENCES, "loss_type": kind} for kind in ("grpo", "dapo", "luspo", "dr_grpo")},
    "sequences, wide": {**SEQUENCES, "loss_type": "grpo", "epsilon": 0.5},
    "sequences, on policy": {"importance_sampling_level": "sequence", "loss_type": "grpo"},
    "sequences, delta": {**SEQUENCES, "loss_type": "grpo", "delta": 1.45},
    "sequences, cispo": {**SEQUENCES, "loss_type": "cispo", "epsilon_high": 1.1},
    "sequences, kl": {**SEQUENCES, "loss_type": "grpo", "beta": 0.1, "use_bias_correction_kl": False},
    "sequences, kl corrected": {**SEQUENCES, "loss_type": "grpo", "beta": 0.1},
    "accumulated": {"gradient_accumulation_steps": 3},
    "accumulated, grpo": {"gradient_accumulation_steps": 3, "loss_type": "grpo"},
    "steps of a generation": {"gradient_accumulation_steps": 2, "steps_per_generation": 4},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_loss_and_gradients_are_trls(name, model, folder):
    options = SETTINGS[name]
    ours, trls = (made(kind, model, folder, options) for kind in (GFTTrainer, GRPOTrainer))
    for trainer in (ours, trls):
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = options.get("gradient_accumulation_steps", 1)
    assert_equal(ours, trls, tiny.batch(old="num_iterations" in options, ref="beta" in options))


def pair(model, folder, options):
    """Both trainers, in training."""
    trainers = [made(kind, model, folder, options) for kind in (GFTTrainer, GRPOTrainer)]
    for trainer in trainers:
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 1
    return trainers


def test_loss_in_evaluation_is_trls(model, folder):
    for loss_type in ("dapo", "grpo"):
        trainers = pair(model, folder, {"loss_type": loss_type, "steps_per_generation": 2})
        for trainer in trainers:
            trainer.model.eval()
        assert_equal(*trainers, tiny.batch())


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_loss_of_one_process_of_two_is_trls(mode, model, folder, monkeypatch):
    trainers = pair(model, folder, {"gradient_accumulation_steps": 2, "steps_per_generation": 4})
    for trainer in trainers:
        trainer.model.train(mode == "train")
    monkeypatch.setattr(type(trainers[0].accelerator), "num_processes", 2)
    assert_equal(*trainers, tiny.batch())


def test_masks_are_trls(model, folder):
    """A response cut off by mask_truncated_completions, tokens of tools, advantages of tokens."""
    inputs = tiny.batch(old=True, ref=True)
    inputs["completion_mask"][2] = 0
    inputs["tool_mask"] = torch.ones(4, 6, dtype=torch.long)
    inputs["tool_mask"][0, 2:4] = 0
    inputs["advantages"] = inputs["advantages"][:, None] + torch.linspace(0, 0.2, 6)
    for options in ({"loss_type": "dapo"}, {"loss_type": "grpo"}, {"loss_type": "grpo", **SEQUENCES}):
        ours, trls = pair(model, folder, {"beta": 0.1, **OFF_POLICY, **options})
        assert_equal(ours, trls, inputs)


@pytest.mark.parametrize("shape", [(4, 1), (4, 6)], ids=["sequence", "token"])
def test_correction_of_samples_from_vllm_is_trls(shape, model, folder):
    inputs = tiny.batch(old=True, ref=True)
    inputs["importance_sampling_ratio"] = torch.linspace(0.2, 2.0, shape[0] * shape[1]).view(shape)
    inputs["importance_sampling_ratio"][1] = 0  # masked by sequence_mask
    for options in ({"beta": 0.1, "delta": 1.5}, {"beta": 0.1, "loss_type": "grpo", **SEQUENCES}):
        trainers = pair(model, folder, options)
        for trainer in trainers:
            trainer.use_vllm = True  # all that the loss looks at
        assert_equal(*trainers, inputs)


def test_router_balancing_is_trls(folder):
    model = tiny.folder_with_model(folder / "mixtral", "mixtral")
    for coefficient in (None, 0.5, 0.0):
        trainers = pair(model, folder, {"router_aux_loss_coef": coefficient})
        assert_equal(*trainers, tiny.batch())
        assert ("aux_loss" in trainers[0]._metrics["train"]) == (coefficient != 0.0)


def test_adapters_are_trained_as_by_trl(model, folder):
    from peft import LoraConfig

    def adapted(kind):
        torch.manual_seed(0)
        trainer = made(kind, model, folder, {"beta": 0.1}, peft_config=LoraConfig(target_modules=["q_proj", "v_proj"]))
        trainer.current_gradient_accumulation_steps = 1
        return trainer

    ours, trls = (adapted(kind) for kind in (GFTTrainer, GRPOTrainer))
    for trainer in (ours, trls):
        trainer.model.train()
        with torch.no_grad():
            for name, p in trainer.model.named_parameters():
                if "lora_" in name:
                    p.fill_(0.05)
    assert_equal(ours, trls, tiny.batch(ref=True))
    assert all("lora_" in name for name, p in ours.model.named_parameters() if p.grad is not None)


def test_loss_forms_no_logits(model, folder, monkeypatch):
    ours, _ = pair(model, folder, {})
    seen = []
    ours.model.lm_head.register_forward_hook(lambda module, given, out: seen.append(tuple(out.shape)))
    tiny.loss_and_gradients(ours, tiny.batch())
    assert seen == [(1, 1, 1)]  # the loss


def test_own_objective_is_computed_with_trls_weights(model, folder):
    ours = made(GFTTrainer, model, folder, {"loss_type": "grpo", "beta": 0.1}, objective=gft(0.04))
    ours.model.train()
    ours.current_gradient_accumulation_steps = 2
    inputs = tiny.batch(ref=True)
    loss, _ = tiny.loss_and_gradients(ours, inputs)
    lp, _, _ = ours._get_per_token_logps_and_entropies(
        ours.model,
        torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1),
        torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1),
        6,
    )
    p, mask, d = lp.exp(), inputs["completion_mask"], inputs["ref_per_token_logps"] - lp
    losses = -inputs["advantages"][:, None] * torch.where(p < 0.04, p, 1.0) * lp + 0.1 * (d.exp() - d - 1)
    want = ((losses * mask).sum(1) / mask.sum(1)).mean() / 2
    torch.testing.assert_close(loss, want.detach(), rtol=1e-5, atol=1e-7)
    metrics = ours._metrics["train"]
    rectified = ((p < 0.04) * mask).sum() / mask.sum()
    assert metrics["rectified_fraction"] == [pytest.approx(rectified.item())]
    assert 0 < rectified < 1
    assert metrics["active_fraction"] == [1.0]
    assert "clip_ratio/low_mean" not in metrics
    assert "kl" in metrics


def test_rows_without_an_advantage_are_skipped_and_not_in_the_means(model, folder):
    inputs = tiny.batch()
    inputs["advantages"] = torch.tensor([1.0, 0.0, -1.0, 0.0])
    ours, trls = pair(model, folder, {})
    got, want = (tiny.loss_and_gradients(trainer, dict(inputs)) for trainer in (ours, trls))
    torch.testing.assert_close(got[0], want[0], rtol=1e-5, atol=1e-7)
    found = ours._metrics["train"]
    assert found["active_fraction"] == [pytest.approx(11 / 15)]
    assert found["entropy"][0] > 0
    inputs["advantages"] = torch.zeros(4)
    assert tiny.loss_and_gradients(ours, inputs)[0] == 0
    assert found["entropy"][1] != found["entropy"][1]  # NaN, which TRL leaves out of its averages


def test_trainer_trains_what_trl_trains(model, folder):
    """Three steps of both on the same rollouts, gradient checkpointing and all."""

    def trained(kind):
        options = {"max_steps": 3, "learning_rate": 1e-2, "gradient_accumulation_steps": 2, "num_iterations": 2}
        trainer = made(kind, model, folder, {**options, "beta": 0.05})
        trainer.train()
        return trainer.model.state_dict()

    got, want = trained(GFTTrainer), trained(GRPOTrainer)
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=0, atol=2e-5)
