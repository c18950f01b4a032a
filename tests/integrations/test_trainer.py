"""A library's Trainer with the loss in the head: its own steps and parameters, whatever it does in
a compute_loss of its own.
"""

from __future__ import annotations

import math

import pytest
import torch
from transformers import Trainer, TrainingArguments

from gft_kernels import dft, gft, kl, sft
from gft_kernels.integrations.trainer import policy_trainer

from .models import untrained
from .test_hf_trainer import rows


class Library(Trainer):
    """It counts tokens by their labels, as axolotl does, and logs exp(loss)."""

    trained = 0

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if model.training:
            type(self).trained += int((inputs["labels"] != -100).sum())
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def log(self, logs, *rest):
        for name in ("loss", "eval_loss"):
            if name in logs:
                logs[name.replace("loss", "ppl")] = math.exp(logs[name])
        super().log(logs, *rest)


class Alone(Trainer):
    """Its loss is not that of transformers' Trainer."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        return model(**inputs).loss


def made(kind, folder, name="llama", more=None, **options):
    defaults = {"max_steps": 3, "learning_rate": 1e-2, "gradient_accumulation_steps": 2, "logging_steps": 1}
    quiet = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "use_cpu": True}
    arguments = TrainingArguments(str(folder), per_device_train_batch_size=2, **{**defaults, **quiet, **options})
    changes = {"output_router_logits": True} if name == "mixtral" else {}
    data = {"train_dataset": rows(), "eval_dataset": rows()[:3]}
    return kind(untrained(name, **changes), arguments, **data, **(more or {}))


def values(trainer, name):
    return [x[name] for x in trainer.state.log_history if name in x]


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_policy_trainer_trains_the_same_parameters(name, tmp_path):
    ours, own = made(policy_trainer(Library, sft()), tmp_path, name), made(Library, tmp_path, name)
    counted = []
    for trainer in (ours, own):
        trainer.train()
        counted.append(type(trainer).trained)
    assert counted[0] == counted[1] > 0
    for key, want in own.model.state_dict().items():
        torch.testing.assert_close(ours.model.state_dict()[key], want, rtol=0, atol=2e-5)
    assert values(ours, "loss") == pytest.approx(values(own, "loss"), rel=1e-5)
    assert ours.evaluate()["eval_loss"] == pytest.approx(own.evaluate()["eval_loss"], rel=1e-5)


@pytest.mark.parametrize("objective", [dft(), gft(0.05), gft(0.0)], ids=repr)
@pytest.mark.parametrize("count", [None, torch.tensor(57)], ids=["a batch", "of a step"])
def test_policy_trainer_computes_its_formula(objective, count, tmp_path):
    trainer = made(policy_trainer(Trainer, objective), tmp_path)
    inputs = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(trainer.model, inputs, num_items_in_batch=count)
    targets = inputs["labels"][:, 1:]
    logprobs = trainer.model(inputs["input_ids"]).logits[:, :-1].double().log_softmax(-1)
    p = logprobs.gather(2, targets.clamp(min=0)[..., None])[..., 0][targets >= 0].exp()
    share = p if isinstance(objective, type(dft())) else torch.where(p < objective.tau, p, 1.0)
    expected = -(share * p.log()).sum() / (len(p) if count is None else count)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-7)


def test_policy_trainer_of_one_process_of_two_is_the_trainers(tmp_path, monkeypatch):
    # Wrappers divide gradients by the number of processes, and the count is that of all of them.
    ours, own = made(policy_trainer(Library, sft()), tmp_path), made(Library, tmp_path)
    monkeypatch.setattr(type(ours.accelerator), "num_processes", 2)
    inputs = next(iter(own.get_train_dataloader()))
    found = [trainer.compute_loss(trainer.model, inputs, False, torch.tensor(57)) for trainer in (ours, own)]
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-7)


def test_policy_trainer_logs_means_over_tokens(tmp_path):
    trainer = made(policy_trainer(Library, dft()), tmp_path, logging_steps=3, max_steps=3, learning_rate=0.0)
    trainer.train()
    # The six micro-batches are all twelve rows, and the model stays as it is.
    data = trainer.data_collator(rows())
    targets = data["labels"][:, 1:]
    with torch.no_grad():
        logprobs = trainer.model(data["input_ids"]).logits[:, :-1].log_softmax(-1)
    nll = -logprobs.gather(2, targets.clamp(min=0)[..., None])[..., 0][targets >= 0]
    (found,) = [x for x in trainer.state.log_history if "loss" in x]
    assert found["nll"] == pytest.approx(nll.mean().item(), rel=1e-5)
    assert found["mean_c"] == pytest.approx((-nll).exp().mean().item(), rel=1e-5)
    assert found["ppl"] == pytest.approx(nll.mean().exp().item(), rel=1e-5)  # and not that of DFT's loss
    assert "tokens" not in found
    trainer.predict(rows()[3:])  # is not logged, and not part of what is
    metrics = trainer.evaluate()
    lengths = [int((row["labels"][1:] != -100).sum()) for row in rows()[:3]]
    assert metrics["eval_nll"] == pytest.approx(nll[: sum(lengths)].mean().item(), rel=1e-5)
    assert metrics["eval_ppl"] == pytest.approx(math.exp(metrics["eval_nll"]), rel=1e-5)


def test_policy_trainer_says_where_its_loss_is_not_computed(tmp_path):
    with pytest.raises(RuntimeError, match="Alone computes its loss by itself"):
        made(policy_trainer(Alone, dft()), tmp_path).train()


REFUSED = {
    "label_smoothing_factor=0.1": ({"label_smoothing_factor": 0.1}, {}),
    "compute_loss_func": ({}, {"compute_loss_func": lambda *args, **kwargs: 0}),
    "compute_metrics": ({}, {"compute_metrics": lambda found: {}}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_policy_trainer_refuses_what_would_have_no_effect(name, tmp_path):
    options, more = REFUSED[name]
    with pytest.raises(ValueError, match=name):
        made(policy_trainer(Trainer, sft()), tmp_path, more=more, **options)


class Late(Trainer):
    """LLaMA-Factory's sets the function so, for its use_dft_loss."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.compute_loss_func = lambda *args, **kwargs: 0


def test_policy_trainer_refuses_a_function_that_came_late(tmp_path):
    with pytest.raises(ValueError, match="compute_loss_func"):
        made(policy_trainer(Late, sft()), tmp_path).train()


def test_policy_trainer_refuses_an_objective_of_other_policies():
    with pytest.raises(ValueError, match="needs ref_logprobs"):
        policy_trainer(Trainer, sft() + kl(0.1))


def test_policy_trainer_keeps_the_librarys_name():
    assert policy_trainer(Library, sft()).__name__ == "Library"
    assert issubclass(policy_trainer(Library, sft()), Library)
