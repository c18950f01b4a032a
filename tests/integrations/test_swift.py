"""ms-swift's loss: its published signature, and the loss against a formula written here.

Where ms-swift is installed (make test-swift), its own trainer runs on it too.
"""

from __future__ import annotations

import inspect
import json
from collections import defaultdict
from importlib.metadata import PackageNotFoundError, version
from types import SimpleNamespace

import pytest
import torch

from gft_kernels import dft, gft, kl, sft
from gft_kernels.integrations.swift import policy_loss

B, T, V = 3, 7, 13

try:
    version("ms-swift")
    installed = True
except PackageNotFoundError:
    installed = False


class Mean:
    """As much of ms-swift's metric as the loss calls."""

    def __init__(self):
        self.values = []

    def update(self, values):
        self.values += values.tolist()


def trainer(**changes) -> SimpleNamespace:
    template = SimpleNamespace(sequence_parallel_size=changes.pop("sequence_parallel_size", 1))
    metrics = {"train": defaultdict(Mean), "eval": defaultdict(Mean)}
    model = SimpleNamespace(training=True)
    return SimpleNamespace(
        **{"template": template, "task_type": "causal_lm", "custom_metrics": metrics, "model": model, **changes}
    )


def arguments(**changes) -> SimpleNamespace:
    return SimpleNamespace(**{"enable_dft_loss": False, "label_smoothing_factor": 0.0, **changes})


def batch() -> tuple[SimpleNamespace, torch.Tensor]:
    logits = torch.randn(B, T, V, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, V, (B, T))
    labels[:, 0] = -100
    labels[1, 3:] = -100
    return SimpleNamespace(logits=logits), labels


FORMULAS = {
    "sft": (sft(), lambda p: -p.log()),
    "dft": (dft(), lambda p: -p.detach() * p.log()),
    "gft": (gft(0.1), lambda p: -torch.where(p.detach() < 0.1, p.detach(), 1.0) * p.log()),
}


@pytest.mark.parametrize("count", [None, 57])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("name", FORMULAS)
def test_policy_loss_is_its_formula(name, scaled, count):
    objective, formula = FORMULAS[name]
    outputs, labels = batch()
    scale = torch.rand(B, T)
    probabilities, expected, tokens = outputs.logits.softmax(-1), 0.0, 0
    for b in range(B):
        for t in range(T - 1):
            if labels[b, t + 1] >= 0:
                tokens += 1
                loss = formula(probabilities[b, t, labels[b, t + 1]])
                expected = expected + loss * (scale[b, t + 1].double() if scaled else 1.0)
    expected = expected / (tokens if count is None else count)
    (want,) = torch.autograd.grad(expected, outputs.logits)

    # ms-swift shifts and flattens the scales before it calls the loss.
    given = scale.roll(-1, dims=-1).view(-1) if scaled else None
    before = outputs.logits.detach().clone()
    loss = policy_loss(objective)(arguments(), trainer())
    found = loss(outputs, labels, num_items_in_batch=count, loss_scale=given, trainer=None)
    (got,) = torch.autograd.grad(found, outputs.logits)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-8)
    assert torch.equal(outputs.logits, before)  # ms-swift reads them again, for the accuracy


def test_policy_loss_of_no_target_is_zero():
    outputs, labels = batch()
    found = policy_loss(gft())(arguments(), trainer())(outputs, torch.full_like(labels, -100))
    found.backward()
    assert found.item() == 0.0
    assert not outputs.logits.grad.any()


def test_policy_loss_logs_where_the_model_is():
    outputs, labels = batch()
    for training, mode, other in ((True, "train", "eval"), (False, "eval", "train")):
        holder = trainer(model=SimpleNamespace(training=training))
        policy_loss(gft(0.1))(arguments(), holder)(outputs, labels)
        found = holder.custom_metrics
        assert set(found[mode]) == {"nll", "entropy", "mean_c", "rectified_fraction"}
        assert not found[other]
        targets = labels[:, 1:]
        logprobs = outputs.logits[:, :-1].log_softmax(-1).gather(2, targets.clamp(min=0)[..., None])[..., 0]
        assert found[mode]["nll"].values == pytest.approx([-logprobs[targets >= 0].mean().item()], rel=1e-5)


def test_policy_loss_has_the_published_signature():
    found = inspect.signature(type(policy_loss(sft())(arguments(), trainer())).__call__).parameters
    assert list(found)[:3] == ["self", "outputs", "labels"]
    for name in ("num_items_in_batch", "loss_scale"):
        assert found[name].kind is inspect.Parameter.KEYWORD_ONLY
        assert found[name].default is None
    assert any(p.kind is p.VAR_KEYWORD for p in found.values())  # it is handed its trainer too


class BaseMegatronTrainer(SimpleNamespace):
    """By its name."""


REFUSED = {
    "enable_dft_loss=True": ({"enable_dft_loss": True}, {}),
    "label_smoothing_factor=0.1": ({"label_smoothing_factor": 0.1}, {}),
    "sequence_parallel_size=2": ({}, {"sequence_parallel_size": 2}),
    "task_type='seq_cls'": ({}, {"task_type": "seq_cls"}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_policy_loss_refuses_what_would_have_no_effect(name):
    options, changes = REFUSED[name]
    with pytest.raises(ValueError, match=name):
        policy_loss(sft())(arguments(**options), trainer(**changes))


def test_policy_loss_refuses_megatron():
    with pytest.raises(ValueError, match="megatron"):
        policy_loss(sft())(arguments(), BaseMegatronTrainer(**vars(trainer())))


def test_policy_loss_refuses_an_objective_of_other_policies():
    with pytest.raises(ValueError, match="needs ref_logprobs"):
        policy_loss(sft() + kl(0.1))


@pytest.mark.skipif(not installed, reason="ms-swift is not installed: make test-swift")
def test_swift_trains_as_on_its_own_loss(tmp_path, plain_memory):
    from swift import SftArguments, sft_main
    from swift.loss import BaseLoss, loss_map

    ours = inspect.signature(type(policy_loss(sft())(arguments(), trainer())).__call__).parameters
    theirs = inspect.signature(BaseLoss.__call__).parameters
    assert list(ours)[:5] == list(theirs)[:5]
    assert [p.kind for p in ours.values()] == [p.kind for p in theirs.values()]

    from .tiny_files import save_model

    save_model(tmp_path / "model")
    words = ["abc", "bcda", "dcb", "eca"] * 4
    chats = [{"messages": [{"role": role, "content": word} for role in ("user", "assistant")]} for word in words]
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, chats)))

    def losses(name: str | None, **options) -> list[float]:
        made = SftArguments(
            model=str(tmp_path / "model"), model_type="llama", template="dummy", tuner_type="full",
            dataset=[str(tmp_path / "chats.jsonl")], output_dir=str(tmp_path / f"{name}"), torch_dtype="float32",
            max_steps=3, per_device_train_batch_size=2, gradient_accumulation_steps=2, learning_rate=1e-2,
            lr_scheduler_type="constant", warmup_ratio=0.0, logging_steps=1, report_to=["none"], check_model=False,
            split_dataset_ratio=0.0, loss_type=name, bf16=False, fp16=False, dataloader_num_workers=0, **options,
        )  # fmt: skip
        history = sft_main(made)["log_history"]
        return [x["loss"] for x in history if "loss" in x]

    loss_map["policy_sft"], loss_map["policy_dft"] = policy_loss(sft()), policy_loss(dft())
    assert losses("policy_sft") == pytest.approx(losses(None), rel=1e-5)
    assert losses("policy_dft") == pytest.approx(losses(None, enable_dft_loss=True), rel=1e-5)
