"""The run: what it logs and leaves behind, that it repeats, stops on bad gradients, and learns."""

import json
from itertools import islice

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gft.demo import sort_letters
from gft.demo.base_model import tokenizer, untrained
from gft.groups import make_batch
from gft.model.policy import make_policy
from gft.settings.parts import EvalConfig, GroupConfig, OptimConfig
from gft.train import prompt_order

from .runs import EXAMPLES, config, response_logprobs, run


def test_train_logs_every_number_and_leaves_a_loadable_model(policy, rewards, tmp_path):
    settings = config(evaluate=EvalConfig(eval_every=1, eval_prompts=2, eval_samples=2), save_every=1)
    (before, after), rows = run(policy, rewards, tmp_path, settings, sort_letters.examples(2, seed=9))
    steps = [r for r in rows if "loss" in r]
    wanted = {
        "loss",
        "nll",
        "mean_c",
        "rectified_fraction",
        "entropy",
        "reward_expert",
        "reward_teacher",
        "reward_self",
        "flat_groups",
        "grad_norm",
        "tokens_per_second",
        "peak_memory_mib",
        "truncated",
        "reward_errors",
        "lr",
    }
    assert len(steps) == 2
    assert all(wanted <= r.keys() and all(isinstance(r[k], (int, float)) for k in wanted) for r in steps)
    assert [r["step"] for r in rows if "eval_greedy" in r] == [0, 1, 2]
    assert before.samples == after.samples == 2
    assert (tmp_path / "checkpoint-1" / "model" / "model.safetensors").exists()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    for (name, a), b in zip(loaded.named_parameters(), policy.model.parameters(), strict=True):
        assert torch.equal(a, b), name
    again = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert (len(again), again("qgzb=").input_ids) == (29, policy.encode_prompt("qgzb="))
    assert again.decode(policy.encode_response("bgqz"), skip_special_tokens=True) == "bgqz"


def test_train_is_repeatable(rewards, tmp_path):
    losses = []
    for i in range(2):
        _, rows = run(make_policy(untrained(0), tokenizer()), rewards, tmp_path / str(i), config(steps=3))
        losses.append([r["loss"] for r in rows if "loss" in r])
    assert losses[0] == losses[1]


def test_train_skips_a_step_with_a_bad_gradient_and_stops_after_too_many(policy, rewards, tmp_path, monkeypatch):
    first = {n: p.detach().clone() for n, p in policy.model.named_parameters()}
    policy.model.model.norm.weight.register_hook(lambda grad: grad * torch.nan)
    with pytest.raises(RuntimeError, match="gradient norm was nan for 2 steps in a row, up to step 2"):
        run(policy, rewards, tmp_path, config(steps=5, objective="sft", optim=OptimConfig(lr=1e-3, bad_steps=2)))
    assert all(torch.equal(first[n], p) for n, p in policy.model.named_parameters())
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [r["skipped"] for r in rows if "loss" in r] == [True, True]


@pytest.mark.parametrize("objective", ["gft", "grpo", "sft", "dft", "reinforce", "cispo"])
def test_train_improves_what_its_objective_rewards(policy, rewards, tmp_path, objective):
    """After twelve updates on eight prompts, what the objective rewards has become more likely.

    Imitation lowers the NLL of the given responses. The policy losses raise good ones over bad.
    """
    group = GroupConfig(1, 3, 0)
    settings = config(
        steps=12, objective=objective, group=group, optim=OptimConfig(lr=3e-3, micro_batch=64), prompts_per_step=8
    )
    before = _gap(policy, rewards, group, objective)
    run(policy, rewards, tmp_path, settings)
    assert _gap(policy, rewards, group, objective) > before + 0.1


@torch.no_grad()
def _gap(policy, rewards, group, objective):
    """Mean log-prob of the given responses (imitation), or of good minus bad ones."""
    batch = make_batch(policy, EXAMPLES, config(group=group), rewards)
    total = 0.0
    for m in batch.members:
        lp = response_logprobs(policy, m.prompt, m.response).mean().item()
        total += lp * (1.0 if objective in ("sft", "dft") else m.advantage)
    return total / len(batch.members)


def test_train_moves_bf16_computed_parameters_at_the_default_rate(rewards, tmp_path):
    """Parameters in bf16 would not: 1e-6 is far below half a step of a weight of 0.02."""
    policy = make_policy(untrained(0), tokenizer(), compute=torch.bfloat16)
    first = [p.detach().clone() for p in policy.model.parameters()]
    run(policy, rewards, tmp_path, config(steps=3, objective="sft", optim=OptimConfig(lr=1e-6, weight_decay=0.0)))
    moved = sum((a != b).sum().item() for a, b in zip(first, policy.model.parameters(), strict=True))
    assert moved > 0.9 * sum(p.numel() for p in first)


def test_train_keeps_the_model_when_the_last_evaluation_is_interrupted(policy, rewards, tmp_path, monkeypatch):
    from gft import train as loop

    original, calls = loop.evaluate, []

    def second_is_interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(loop, "evaluate", second_is_interrupted)
    settings = config(objective="sft", evaluate=EvalConfig(eval_prompts=2, eval_samples=1))
    with pytest.raises(KeyboardInterrupt):
        run(policy, rewards, tmp_path, settings, sort_letters.examples(2, seed=9))
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "model") is not None


def test_prompt_order_sees_every_prompt_once_an_epoch():
    seen = list(islice(prompt_order(8, seed=0), 24))
    assert [sorted(seen[i : i + 8]) for i in (0, 8, 16)] == [list(range(8))] * 3
    assert seen[:8] != seen[8:16]
