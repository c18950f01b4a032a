"""verl's own actor (FSDP2 engine, ppo_loss) with the loss and the head, on a CPU."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from verl.utils.fsdp_utils import fsdp_version

from gft_kernels import gft, logits_policy_loss

from ..models import V, untrained
from .tiny import engine_of, parameters, process_group, rollout, update

MODELS = ("llama", "qwen2-tied", "gemma2-softcap", "cohere-multiplies")


@pytest.fixture(scope="module", autouse=True)
def worker():
    with process_group():
        yield


@pytest.fixture(autouse=True)
def own_forwards(monkeypatch):
    """verl patches classes: put their own forwards back after each test."""
    for name in MODELS:
        cls = type(untrained(name))
        monkeypatch.setattr(cls, "forward", cls.forward)


def folder_of(name, path):
    model = untrained(name)
    with torch.no_grad():
        model.lm_head.weight.mul_(10.0)
    model.save_pretrained(path)
    return model, str(path)


def updated(folder, fused, steps=2, temperature=0.8, loss_mode="gft", micro=2, options=None, **changes):
    engine = engine_of(folder, fused, **changes)
    found = [
        update(engine, rollout(V, temperature, fused, micro=micro), loss_mode, **(options or {})) for _ in range(steps)
    ]
    return engine, found


def assert_same_run(one, other, tolerance=2e-6):
    (a, of_a), (b, of_b) = one, other
    for x, y in zip(of_a, of_b, strict=True):
        assert x == pytest.approx(y, rel=1e-4, abs=1e-5)
    got, want = parameters(a), parameters(b)
    for name, p in want.items():
        assert (got[name] - p).abs().max() < tolerance, name


@pytest.mark.parametrize("name", MODELS)
def test_fused_actor_equals_the_one_through_logits(name, tmp_path):
    """Two updates with entropy bonus, at a temperature: losses, norms, metrics, parameters."""
    _, folder = folder_of(name, tmp_path)
    options = {"entropy_coeff": 0.01}
    before = parameters(engine_of(folder, False))
    logits, fused = (updated(folder, fused, options=options) for fused in (False, True))
    assert_same_run(fused, logits)
    moved = parameters(fused[0])
    assert all((moved[name] - p).abs().max() > 1e-4 for name, p in before.items() if "lm_head" in name)
    assert {"actor/mean_c", "actor/rectified_fraction", "actor/nll", "actor/entropy_loss"} <= set(fused[1][0])


def test_update_is_that_of_the_formula(tmp_path):
    """The loss and the norm of the gradient, against logits of a model that verl never saw."""
    model, folder = folder_of("gemma2-softcap", tmp_path)
    data = rollout(V, 0.8, True)
    rows, prompt = len(data), data["prompts"].shape[1]
    ids = torch.cat([data["prompts"], data["responses"]], 1)
    logits = model(input_ids=ids, attention_mask=data["attention_mask"]).logits[:, prompt - 1 : -1] / 0.8
    targets = torch.where(data["response_mask"].bool(), data["responses"], -100)
    want = logits_policy_loss(logits.flatten(0, 1), targets.flatten(), data["advantages"].flatten(), objective=gft(0.7))
    want.loss.backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    _, (found,) = updated(folder, True, steps=1)
    assert rows == 8
    assert found["loss"] == pytest.approx(want.loss.item(), rel=1e-5)
    assert found["grad_norm"] == pytest.approx(norm.item(), rel=1e-5)


def test_micro_batches_do_not_change_the_update(tmp_path):
    _, folder = folder_of("llama", tmp_path)
    one, other = (updated(folder, True, steps=1, micro=micro) for micro in (2, 8))
    assert one[1][0]["loss"] == pytest.approx(other[1][0]["loss"], rel=1e-5)
    assert one[1][0]["grad_norm"] == pytest.approx(other[1][0]["grad_norm"], rel=1e-5)


def test_checkpointed_layers_change_nothing(tmp_path):
    _, folder = folder_of("llama", tmp_path)
    assert_same_run(updated(folder, True, enable_gradient_checkpointing=True), updated(folder, True))


def test_vanilla_loss_gets_the_head_too(tmp_path):
    _, folder = folder_of("gemma2-softcap", tmp_path)
    assert_same_run(*(updated(folder, fused, loss_mode="vanilla") for fused in (True, False)))


def test_engine_is_sharded(tmp_path):
    """Else the tests above would say nothing of FSDP2's hooks around the head."""
    engine = engine_of(folder_of("llama", tmp_path)[1], True)
    assert fsdp_version(engine.module) == 2
    assert hasattr(engine.module.lm_head.weight, "placements")


@pytest.mark.parametrize("name", ["llama", "qwen2-tied"])
def test_two_processes_equal_one(name, tmp_path):
    _, folder = folder_of(name, tmp_path / "model")
    engine, (first,) = updated(folder, True, steps=1)
    torch.save(parameters(engine), tmp_path / "one.pt")
    command = [sys.executable, "-m", "tests.integrations.verl.ranks", folder, str(tmp_path)]
    processes = [subprocess.Popen([*command, str(rank)], stderr=subprocess.PIPE, text=True) for rank in range(2)]
    outputs = [process.communicate(timeout=250)[1] for process in processes]
    assert not any(process.returncode for process in processes), "\n".join(outputs)
    found = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    for of_rank in found:
        assert of_rank["error"] < 2e-6, found
        assert of_rank["grad_norm"] == pytest.approx(first["grad_norm"], rel=1e-5)
    assert sum(of_rank["loss"] for of_rank in found) / 2 == pytest.approx(first["loss"], rel=1e-5)
