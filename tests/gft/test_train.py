"""The loop: gradients of a step, micro-batches, bad gradients, checkpoints, and that it learns."""

import json
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from gft.checkpoint import save_checkpoint
from gft.config import EMBEDDED, EvalConfig, GroupConfig, OptimConfig
from gft.demo import sort_letters
from gft.demo.base_model import tokenizer, untrained
from gft.groups import make_batch
from gft.metrics import MetricsLog, read_metrics
from gft.policy import make_policy
from gft.report import Progress
from gft.train import accumulate_gradients, collate, prompt_batches, train

EXAMPLES = sort_letters.examples(8, seed=0)


def config(**changes):
    return replace(
        EMBEDDED, **{"objective": "gft", "steps": 2, "prompts_per_step": 3, "group": GroupConfig(1, 3, 2), **changes}
    )


def gradients(policy):
    out = {n: p.grad.clone() for n, p in policy.model.named_parameters()}
    policy.model.zero_grad()
    return out


def fixed_batch(policy, rewards, settings):
    """A step whose last group has no spread."""
    torch.manual_seed(0)
    batch = make_batch(policy, EXAMPLES[:3], settings, rewards)
    for m in batch.members:
        if m.group == 2:
            m.advantage, m.spread = 0.0, False
    return batch


@pytest.mark.parametrize(
    "reduction", ["token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm", "sum"]
)
@pytest.mark.parametrize("objective", ["gft", "sft"])
def test_accumulate_gradients_is_the_full_logits_loss_whatever_the_micro_batch(policy, rewards, reduction, objective):
    settings = config(reduction=reduction, objective=objective)
    batch = fixed_batch(policy, rewards, config())
    expected = _full_logits_loss(policy, batch, settings)
    expected.backward()
    wanted = gradients(policy)
    for micro in (1, 4, 100):
        numbers = accumulate_gradients(policy, batch, replace(settings, optim=OptimConfig(micro_batch=micro)))
        assert numbers["loss"] == pytest.approx(expected.item(), rel=1e-5)
        for name, grad in gradients(policy).items():
            torch.testing.assert_close(
                grad, wanted[name], rtol=1e-4, atol=1e-6 * wanted[name].abs().max().item() + 1e-9
            )


def _full_logits_loss(policy, batch, settings):
    """The loss one sequence at a time, from the model's own logits."""
    policy.model.train()
    total, tokens, count = 0.0, sum(len(m.response) for m in batch.members), len(batch.members)
    for m in batch.members:
        ids = torch.tensor([m.prompt + m.response])
        lp = policy.model(ids).logits[0, len(m.prompt) - 1 : -1].log_softmax(-1)[range(len(m.response)), m.response]
        c = torch.where(lp.exp() < 0.7, lp.exp(), 1.0).detach() * m.advantage if settings.objective == "gft" else 1.0
        weight = {
            "token-mean": 1 / tokens,
            "seq-mean-token-sum": 1 / count,
            "seq-mean-token-mean": 1 / (count * len(m.response)),
            "seq-mean-token-sum-norm": 1 / (count * 2048),
            "sum": 1.0,
        }[settings.reduction]
        total = total - (c * lp).sum() * weight
    return total


def test_accumulate_gradients_can_leave_flat_groups_out_of_the_mean(policy, rewards):
    """A member whose reward is its group's mean has advantage 0 too, but its group is not flat: it
    stays in the mean.
    """
    batch = fixed_batch(policy, rewards, config())
    batch.members[0].advantage = 0.0
    every, active = (
        sum(len(m.response) for m in batch.members if keep(m)) for keep in (lambda m: True, lambda m: m.group != 2)
    )
    assert active < every
    counted = accumulate_gradients(policy, batch, config())["loss"]
    excluded = accumulate_gradients(policy, batch, config(group=GroupConfig(1, 3, 2, count_flat=False)))["loss"]
    assert excluded == pytest.approx(counted * every / active, rel=1e-5)


def test_accumulate_gradients_counts_groups_of_one(policy, rewards):
    """A group of one has no spread but its reward as advantage: it is trained on, so it counts."""
    settings = config(group=GroupConfig(1, 0, 0))
    batch = make_batch(policy, EXAMPLES[:3], settings, rewards)
    assert all(m.advantage == 1.0 for m in batch.members)
    without = config(group=GroupConfig(1, 0, 0, count_flat=False))
    assert accumulate_gradients(policy, batch, without)["loss"] == accumulate_gradients(policy, batch, settings)["loss"]


def test_accumulate_gradients_of_all_flat_groups_is_nothing(policy, rewards):
    batch = fixed_batch(policy, rewards, config())
    for m in batch.members:
        m.advantage = 0.0
    numbers = accumulate_gradients(policy, batch, config())
    assert (numbers["loss"], numbers["active_sequences"]) == (0.0, 0)
    assert all(p.grad is None for p in policy.model.parameters())


def test_accumulate_gradients_with_a_sparse_head_is_near_and_says_how_near(policy, rewards):
    batch = fixed_batch(policy, rewards, config())
    assert "sparse_error" not in accumulate_gradients(policy, batch, config())
    exact = gradients(policy)
    numbers = accumulate_gradients(policy, batch, config(sparse=0.3))
    assert 0 < numbers["sparse_columns"] <= 1
    assert numbers["sparse_error"] <= 0.3
    for name, grad in gradients(policy).items():
        assert (grad - exact[name]).norm() <= 1.5 * exact[name].norm(), name


def test_accumulate_gradients_never_forms_logits(policy, rewards, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the head was called in training")

    batch = fixed_batch(policy, rewards, config())
    monkeypatch.setattr(policy.model.get_output_embeddings(), "forward", refuse)
    assert accumulate_gradients(policy, batch, config())["active_sequences"] > 0


def test_collate_masks_padding_by_length_even_where_it_is_the_end_token(policy, rewards):
    batch = fixed_batch(policy, rewards, config())
    members = sorted(batch.members, key=lambda m: len(m.response))
    members[0].response = members[0].response[:3]
    eos = policy.tokenizer.eos_token_id
    _, mask, targets, _ = collate(members, pad=eos, device=torch.device("cpu"))
    assert (targets != -100).sum(1).tolist() == [len(m.response) for m in members]
    assert mask.sum(1).tolist() == [len(m.prompt) + len(m.response) for m in members]
    for row, m in enumerate(members):
        assert targets[row][targets[row] != -100].tolist() == m.response


def run(policy, rewards, tmp_path, settings, held_out=()):
    settings = replace(settings, out=tmp_path)
    with MetricsLog(tmp_path / "metrics.jsonl") as log, Progress("t", settings.steps, Console(quiet=True)) as progress:
        result = train(policy, EXAMPLES, held_out, settings, rewards, log, progress)
    return result, read_metrics(tmp_path / "metrics.jsonl")


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
    assert (tmp_path / "checkpoint-1" / "model.safetensors").exists()
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
    policy.backbone.norm.weight.register_hook(lambda grad: grad * torch.nan)
    with pytest.raises(RuntimeError, match="gradient norm was nan for 2 steps in a row, up to step 2"):
        run(policy, rewards, tmp_path, config(steps=5, objective="sft", optim=OptimConfig(lr=1e-3, bad_steps=2)))
    assert all(torch.equal(first[n], p) for n, p in policy.model.named_parameters())
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [r["skipped"] for r in rows if "loss" in r] == [True, True]


@pytest.mark.parametrize("objective", ["gft", "grpo", "sft", "dft", "reinforce", "cispo"])
def test_train_improves_what_its_objective_rewards(policy, rewards, tmp_path, objective):
    """Twelve updates on eight prompts: imitation lowers the experts' NLL; the policy losses raise
    good responses over bad ones.
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
        ids = torch.tensor([m.prompt + m.response])
        lp = (
            policy.model(ids)
            .logits[0, len(m.prompt) - 1 : -1]
            .log_softmax(-1)[range(len(m.response)), m.response]
            .mean()
            .item()
        )
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


def test_prompt_batches_see_every_prompt_once_an_epoch():
    batches = prompt_batches(EXAMPLES, 3, seed=0)
    seen = [e.origin for _ in range(8) for e in next(batches)]
    assert [sorted(seen[i : i + 8]) for i in (0, 8, 16)] == [sorted(e.origin for e in EXAMPLES)] * 3


def test_save_checkpoint_replaces_an_older_one_whole(policy, tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    (target / "stale.txt").write_text("x")
    save_checkpoint(policy, target)
    assert not (target / "stale.txt").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


def test_save_checkpoint_takes_tokenizers_that_save_folders(policy, tmp_path):
    policy.tokenizer.chat_template = {"default": "{{ messages }}", "tools": "{{ tools }}"}
    save_checkpoint(policy, tmp_path / "model")
    assert AutoTokenizer.from_pretrained(tmp_path / "model").chat_template == policy.tokenizer.chat_template


def test_save_checkpoint_recovers_from_a_crash_between_its_renames(policy, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError("no space left on device")

    save_checkpoint(policy, tmp_path / "model").rename(tmp_path / "model.old")
    monkeypatch.setattr(policy.model, "save_pretrained", full)
    with pytest.raises(OSError, match="no space"):
        save_checkpoint(policy, tmp_path / "model")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "model") is not None


def test_save_checkpoint_keeps_the_old_one_when_saving_fails(policy, tmp_path, monkeypatch):
    target = save_checkpoint(policy, tmp_path / "model")

    def full(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr(policy.model, "save_pretrained", full)
    with pytest.raises(OSError, match="no space"):
        save_checkpoint(policy, target)
    assert AutoModelForCausalLM.from_pretrained(target) is not None
