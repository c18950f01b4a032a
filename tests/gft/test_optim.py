"""The optimiser: what decays, what rate a step has, and that moments find their weights again."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn
from transformers import get_linear_schedule_with_warmup
from transformers.trainer_pt_utils import get_parameter_names

from gft.demo.base_model import tokenizer, untrained
from gft.model.policy import make_policy
from gft.optim import decays, learning_rate, make_optimizer, names, optimizer_step
from gft.runs.checkpoint import Checkpoints
from gft.runs.state import RunState, random_state
from gft.settings.parts import OptimConfig

from .runs import config, run

COSINE = OptimConfig(lr=1e-2, schedule="cosine")


def decayed(optimizer):
    return {n for g in optimizer.param_groups if g["weight_decay"] for n in g["param_names"]}


def test_make_optimizer_decays_matrices_alone(policy):
    optimizer = make_optimizer(policy.model, OptimConfig(weight_decay=0.5))
    for name, p in policy.model.named_parameters():
        assert (name in decayed(optimizer)) == (p.ndim == 2), name
    assert sorted(names(optimizer)) == sorted(name for name, _ in policy.model.named_parameters())
    # transformers' Trainer, by names and kinds of layers
    forbidden = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]
    own = set(get_parameter_names(policy.model, [nn.LayerNorm], forbidden))
    assert decayed(optimizer) == own & set(names(optimizer))
    assert any("embed_tokens" in name for name in decayed(optimizer))


def test_decays_knows_biases_of_experts():
    assert not decays("mlp.experts.gate_up_proj_bias", torch.zeros(4, 8))
    assert decays("mlp.experts.gate_up_proj", torch.zeros(4, 8, 8))


def test_optimizer_step_shrinks_matrices_and_leaves_norms(policy):
    """Without a gradient that tells, all that an update does is decay."""
    settings = config(optim=OptimConfig(lr=0.1, weight_decay=0.5))
    optimizer = make_optimizer(policy.model, settings.optim)
    before = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
    for p in policy.model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer_step(policy, optimizer, settings, 1, learn=True)
    for name, p in policy.model.named_parameters():
        torch.testing.assert_close(p, before[name] * (1 - 0.1 * 0.5 if p.ndim == 2 else 1))


def test_make_optimizer_takes_what_is_trained(policy):
    for name, p in policy.model.named_parameters():
        p.requires_grad_("q_proj.weight" in name)
    optimizer = make_optimizer(policy.model, OptimConfig())
    assert names(optimizer) == [f"model.layers.{i}.self_attn.q_proj.weight" for i in range(2)]


def test_make_optimizer_is_adamw_with_the_betas_of_the_options(policy):
    """One weight, two gradients, by hand."""
    settings = OptimConfig(lr=0.1, weight_decay=0.0, adam_beta1=0.8, adam_beta2=0.6, adam_epsilon=1e-3)
    weight = nn.Parameter(torch.tensor([[1.0]]))
    model = nn.ParameterDict({"w": weight})
    optimizer = make_optimizer(model, settings)
    value, m, v = 1.0, 0.0, 0.0
    for step, grad in enumerate((0.5, -0.25), 1):
        weight.grad = torch.tensor([[grad]])
        optimizer.step()
        m, v = 0.8 * m + 0.2 * grad, 0.6 * v + 0.4 * grad**2
        value -= 0.1 * (m / (1 - 0.8**step)) / (math.sqrt(v / (1 - 0.6**step)) + 1e-3)
    assert weight.item() == pytest.approx(value, rel=1e-6)


def test_learning_rate_warms_up_then_stays():
    settings = OptimConfig(lr=4.0, warmup=4)
    assert [learning_rate(settings, step, 6) for step in range(1, 7)] == [1, 2, 3, 4, 4, 4]
    assert learning_rate(replace(settings, warmup=0), 1, 6) == 4


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_learning_rate_falls_to_its_minimum_after_the_last_step(schedule):
    settings = OptimConfig(lr=1.0, schedule=schedule, warmup=3, min_lr=0.2)
    rates = [learning_rate(settings, step, 12) for step in range(1, 14)]
    assert rates[2] == 1.0
    assert rates[12] == pytest.approx(0.2)
    assert rates[11] > 0.2
    assert all(a > b for a, b in pairwise(rates[2:]))
    half = learning_rate(replace(settings, warmup=0), 6, 10)  # five of ten steps are made
    assert half == pytest.approx(0.6)


def test_learning_rate_is_that_of_transformers_one_step_on():
    """Theirs begins the warm-up with a rate of 0; from the highest rate on they are the same."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = get_linear_schedule_with_warmup(optimizer, 1, 9)
    own = []
    for _ in range(8):
        optimizer.step()
        schedule.step()
        own.append(schedule.get_last_lr()[0])
    settings = OptimConfig(lr=1.0, schedule="linear")
    assert [learning_rate(settings, step, 8) for step in range(1, 9)] == pytest.approx(own)


def test_train_logs_the_rate_of_the_schedule(policy, rewards, tmp_path):
    _, rows = run(policy, rewards, tmp_path, config(steps=3, objective="sft", optim=COSINE))
    assert [row["lr"] for row in rows] == [learning_rate(COSINE, step, 3) for step in (1, 2, 3)]


def test_restore_gives_every_weight_its_own_moments(policy, tmp_path):
    """The optimiser's order is not the model's: norms come last."""
    optimizer = make_optimizer(policy.model, OptimConfig())
    assert names(optimizer) != [name for name, _ in policy.model.named_parameters()]
    for p in policy.model.parameters():
        p.grad = torch.full_like(p, p.numel() / 1000)
    optimizer.step()
    path = Checkpoints(tmp_path, "run", policy, optimizer, []).save(RunState(random=random_state(policy.device)))
    again = make_policy(untrained(1), tokenizer())
    fresh = make_optimizer(again.model, OptimConfig())
    Checkpoints(tmp_path, "run", again, fresh, []).restore(path, print)
    for (name, p), q in zip(policy.model.named_parameters(), again.model.parameters(), strict=True):
        torch.testing.assert_close(fresh.state[q], optimizer.state[p], rtol=0, atol=0, msg=name)
