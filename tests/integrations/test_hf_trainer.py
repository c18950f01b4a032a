"""transformers' Trainer with a fused loss trains the parameters that its own loss trains."""

from __future__ import annotations

import pytest
import torch
from transformers import Trainer, TrainingArguments

from gft_kernels import sft
from gft_kernels.integrations.hf import PolicyBatch, fuse_loss, num_items_weights, shift

from .models import V, untrained


class Fused(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        targets = shift(inputs.pop("labels"))
        weights = num_items_weights(targets, num_items_in_batch)
        return model(**inputs, policy_batch=PolicyBatch(targets, sft(), token_weights=weights)).loss


def rows() -> list[dict[str, torch.Tensor]]:
    g = torch.Generator().manual_seed(3)
    ids = torch.randint(3, V, (12, 9), generator=g)
    labels = ids.clone()
    for row in range(12):
        labels[row, : row % 5] = -100
    return [{"input_ids": x, "labels": y} for x, y in zip(ids, labels, strict=True)]


def trained(trainer: type[Trainer], folder, name: str, **options) -> dict[str, torch.Tensor]:
    model = untrained(name)
    if trainer is Fused:
        fuse_loss(model)
    arguments = TrainingArguments(
        folder,
        max_steps=3,
        learning_rate=1e-2,
        gradient_accumulation_steps=2,
        per_device_train_batch_size=2,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        **options,
    )
    trainer(model, arguments, train_dataset=rows()).train()
    return {key: value.float() for key, value in model.state_dict().items()}


@pytest.mark.parametrize("name", ["llama", "gemma2-softcap"])
def test_trainer_trains_the_same_parameters(name, tmp_path):
    got, want = (trained(kind, tmp_path, name) for kind in (Fused, Trainer))
    for key in want:
        torch.testing.assert_close(got[key], want[key], rtol=0, atol=2e-5)


def test_trainer_in_bf16_computes_the_head_in_bf16(tmp_path, monkeypatch):
    from gft_kernels.integrations import fuse

    seen, compute = [], fuse._compute

    def recorded(hidden, weight, *rest):
        seen.append((hidden.dtype, weight.dtype))
        return compute(hidden, weight, *rest)

    monkeypatch.setattr(fuse, "_compute", recorded)
    got, want = (trained(kind, tmp_path, "llama", bf16=True) for kind in (Fused, Trainer))
    assert set(seen) == {(torch.bfloat16, torch.bfloat16)}
    for key in want:
        torch.testing.assert_close(got[key], want[key], rtol=0, atol=2e-2)
