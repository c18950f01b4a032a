"""Gradients of one step: those of the full-logits loss, whatever the micro-batch."""

from dataclasses import replace

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM

from gft.collate import collate
from gft.demo.base_model import tokenizer
from gft.groups import make_batch
from gft.model.policy import make_policy
from gft.settings.parts import GroupConfig, OptimConfig
from gft.update import accumulate_gradients

from .runs import EXAMPLES, config, fixed_batch, gradients, response_logprobs


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
        lp = response_logprobs(policy, m.prompt, m.response)
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
    """A member whose reward is its group's mean has advantage 0 too, but its group is not flat."""
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


@pytest.mark.parametrize("micro_batch", [100, 4, 1])
def test_accumulate_gradients_has_router_balancing_by_the_share_of_a_micro_batch(rewards, micro_batch):
    """Mixtral, whose own loss adds the balancing of a forward pass with a coefficient."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 29, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_experts_per_tok": 2, "num_local_experts": 4}
    mixture = MixtralConfig(**sizes, **heads, router_aux_loss_coef=0.5, output_router_logits=True)
    policy = make_policy(MixtralForCausalLM(mixture).eval(), tokenizer())
    batch = fixed_batch(policy, rewards, config())
    active = [m for m in batch.members if m.advantage != 0]
    active.sort(key=lambda m: len(m.prompt) + len(m.response))
    settings = config(optim=OptimConfig(micro_batch=micro_batch))
    policy.model.config.output_router_logits = False
    without = accumulate_gradients(policy, batch, settings)
    wanted = gradients(policy)
    policy.model.config.output_router_logits = True
    expected = 0.0
    for start in range(0, len(active), micro_batch):
        part = active[start : start + micro_batch]
        rows = collate(part, 0, torch.device("cpu"))
        aux = 0.5 * policy.model(**rows.inputs, output_router_logits=True).aux_loss
        (len(part) / len(active) * aux).backward()
        expected += len(part) / len(active) * aux.item()
    balancing = {n: p.grad.clone() for n, p in policy.model.named_parameters() if p.grad is not None}
    policy.model.zero_grad()
    found = accumulate_gradients(policy, batch, settings)
    assert "aux_loss" not in without
    assert found["aux_loss"] == pytest.approx(expected, rel=1e-5)
    assert found["loss"] == pytest.approx(without["loss"], rel=1e-5)
    assert balancing["model.layers.0.mlp.gate.weight"].abs().max() > 1e-4
    for name, grad in gradients(policy).items():
        torch.testing.assert_close(grad, wanted[name] + balancing.get(name, 0), rtol=1e-4, atol=1e-6)


def test_accumulate_gradients_never_forms_logits(policy, rewards):
    batch, given = fixed_batch(policy, rewards, config()), []
    head = policy.model.get_output_embeddings()
    handle = head.register_forward_hook(lambda layer, inputs, output: given.append(tuple(output.shape)))
    assert accumulate_gradients(policy, batch, config())["active_sequences"] > 0
    handle.remove()
    assert set(given) == {(1, 1, 1)}  # a loss in the place of logits [B, T, V]


def test_collate_masks_padding_by_length_even_where_it_is_the_end_token(policy, rewards):
    batch = fixed_batch(policy, rewards, config())
    members = sorted(batch.members, key=lambda m: len(m.response))
    members[0].response = members[0].response[:3]
    eos = policy.tokenizer.eos_token_id
    inputs, targets, _ = collate(members, pad=eos, device=torch.device("cpu"))
    mask = inputs["attention_mask"]
    assert (targets != -100).sum(1).tolist() == [len(m.response) for m in members]
    assert mask.sum(1).tolist() == [len(m.prompt) + len(m.response) for m in members]
    for row, m in enumerate(members):
        assert targets[row][targets[row] != -100].tolist() == m.response
