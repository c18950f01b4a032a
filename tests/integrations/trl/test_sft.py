"""PolicySFTTrainer's loss, gradients and metrics are those of TRL's SFTTrainer."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM
from trl import SFTConfig, SFTTrainer

from gft_kernels import dft, gft, kl, sft
from gft_kernels.integrations.trl import PolicySFTTrainer

from . import tiny


def data() -> Dataset:
    letters = tiny.LETTERS
    return Dataset.from_dict(
        {"prompt": [letters[i : i + 3] for i in range(8)], "completion": [letters[8 - i : 13] for i in range(8)]}
    )


def made(kind, folder, options=None, model="llama", **more):
    defaults = {"use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no", "disable_tqdm": True}
    config = SFTConfig(str(folder), **{**defaults, "per_device_train_batch_size": 4, **(options or {})})
    loaded = AutoModelForCausalLM.from_pretrained(tiny.folder_with_model(folder / model, model), dtype="float32")
    trainer = kind(loaded, config, train_dataset=data(), processing_class=tiny.tokenizer(), **more)
    trainer.current_gradient_accumulation_steps = 2
    return trainer


def loss_and_gradients(trainer, count):
    trainer.model.train()
    torch.manual_seed(0)
    inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    loss = trainer.compute_loss(trainer.model, inputs, num_items_in_batch=count)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}


def assert_equal(ours, trls, count):
    got, want = (loss_and_gradients(trainer, count) for trainer in (ours, trls))
    torch.testing.assert_close(got[0], want[0], rtol=1e-5, atol=1e-7)
    assert set(got[1]) == set(want[1])
    for name, gradient in want[1].items():
        torch.testing.assert_close(got[1][name], gradient, rtol=1e-5, atol=1e-5 * gradient.abs().max().item())
    for name, values in trls._metrics["train"].items():
        if name != "mean_token_accuracy":
            assert ours._metrics["train"][name] == pytest.approx(values, rel=1e-5), name


SETTINGS = {
    "nll": ({}, "nll", None),
    "dft": ({}, "dft", None),
    "sft() over nll": ({}, "nll", sft()),
    "dft() over nll": ({}, "dft", dft()),
    "the whole text": ({"completion_only_loss": False}, "dft", dft()),
    "padding free": ({"padding_free": True, "max_length": None}, "dft", dft()),
}


@pytest.mark.filterwarnings("ignore:.*padding-free.*")
@pytest.mark.parametrize("count", [None, torch.tensor(57)], ids=["a batch", "of a step"])
@pytest.mark.parametrize("name", SETTINGS)
def test_loss_and_gradients_are_trls(name, count, tmp_path):
    options, loss_type, objective = SETTINGS[name]
    # Without an objective the config's own loss_type is computed.
    said = loss_type if objective is None else "nll"
    ours = made(PolicySFTTrainer, tmp_path, {**options, "loss_type": said}, objective=objective)
    trls = made(SFTTrainer, tmp_path, {**options, "loss_type": loss_type})
    assert_equal(ours, trls, count)


def test_loss_of_one_process_of_two_is_trls(tmp_path, monkeypatch):
    ours, trls = (made(kind, tmp_path) for kind in (PolicySFTTrainer, SFTTrainer))
    monkeypatch.setattr(type(ours.accelerator), "num_processes", 2)
    assert_equal(ours, trls, torch.tensor(57))


def test_router_balancing_is_trls(tmp_path):
    for coefficient in (None, 0.5):
        options = {"router_aux_loss_coef": coefficient}
        ours, trls = (made(kind, tmp_path, options, "mixtral") for kind in (PolicySFTTrainer, SFTTrainer))
        assert_equal(ours, trls, torch.tensor(57))


def test_rectification_takes_an_advantage_of_one(tmp_path):
    found = [
        loss_and_gradients(made(PolicySFTTrainer, tmp_path, objective=objective), None)[0]
        for objective in (gft(0.0), sft(), gft(2.0), dft())
    ]
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[2], found[3])
    assert abs(found[0] - found[2]) > 0.1


def test_trainer_trains_and_evaluates_as_trl(tmp_path):
    def run(kind):
        options = {"max_steps": 3, "learning_rate": 1e-2, "gradient_accumulation_steps": 2, "loss_type": "dft"}
        trainer = made(kind, tmp_path, options, eval_dataset=data())
        trainer.train()
        return trainer.model.state_dict(), trainer.evaluate()

    (got, ours), (want, trls) = run(PolicySFTTrainer), run(SFTTrainer)
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=0, atol=2e-5)
    assert ours["eval_loss"] == pytest.approx(trls["eval_loss"], rel=1e-4)
    assert ours["eval_nll"] > 0


REFUSED = {
    "label_smoothing_factor=0.1": ({"label_smoothing_factor": 0.1}, {}),
    "loss_type='dft'": ({"loss_type": "dft"}, {"objective": gft(0.7)}),
    "use_liger_kernel=True": ({"use_liger_kernel": True}, {}),
    "compute_loss_func": ({}, {"compute_loss_func": lambda *args, **kwargs: 0}),
    "needs ref_logprobs": ({}, {"objective": sft() + kl(0.1)}),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_trainer_refuses_what_would_have_no_effect(name, tmp_path):
    options, more = REFUSED[name]
    with pytest.raises(ValueError, match=name):
        made(PolicySFTTrainer, tmp_path, options, **more)
