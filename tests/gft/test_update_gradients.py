"""Gradients of what the recipe adds: rectification by source, ratios, masks, packed rows.

The expected losses are made of the model's own logits, one sequence at a time.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close
from transformers import MambaConfig, MambaForCausalLM

from gft.collate import check_packed
from gft.demo.base_model import tokenizer, untrained
from gft.groups import make_batch
from gft.logprobs import token_logprobs
from gft.model.policy import make_policy
from gft.settings.parts import GroupConfig, OptimConfig, ReuseConfig, SamplingConfig
from gft.update import accumulate_gradients

from .runs import EXAMPLES, config, fixed_batch, gradients, response_logprobs


def expected_gradients(policy, members, loss_of):
    """Gradients of the token mean of `loss_of(member, its log-probs [n])`; the loss too."""
    policy.model.zero_grad()
    total = sum(loss_of(m, response_logprobs(policy, m.prompt, m.response)).sum() for m in members)
    loss = total / sum(len(m.response) for m in members)
    loss.backward()
    return loss.item(), gradients(policy)


def check(policy, batch, settings, members, loss_of):
    """The step's loss and gradients are the expected ones, padded and packed."""
    loss, wanted = expected_gradients(policy, members, loss_of)
    assert loss != 0
    for optim in (OptimConfig(micro_batch=4), OptimConfig(micro_batch=4, packed=True)):
        numbers = accumulate_gradients(policy, batch, replace(settings, optim=optim))
        assert numbers["loss"] == pytest.approx(loss, rel=1e-4)
        for name, grad in gradients(policy).items():
            assert_close(grad, wanted[name], rtol=1e-4, atol=1e-6 * wanted[name].abs().max().item() + 1e-9)


def rectified(m, lp, tau):
    p = lp.detach().exp()
    return -m.advantage * torch.where(p < tau, p, 1.0) * lp


def test_rectify_given_leaves_own_tokens_their_whole_gradient(policy, rewards):
    batch = fixed_batch(policy, rewards, config())
    assert {m.source for m in batch.members if m.advantage} == {"expert", "teacher", "self"}

    def loss_of(m, lp):
        return rectified(m, lp, 0.0 if m.source == "self" else 0.7)

    check(policy, batch, config(group=GroupConfig(1, 3, 2, rectify="given")), batch.members, loss_of)


def test_packed_rows_have_the_gradients_of_padded_ones(policy, rewards):
    batch = fixed_batch(policy, rewards, config())
    batch.members[0].prompt = batch.members[0].prompt[:4]  # no two alike
    check(policy, batch, config(), batch.members, lambda m, lp: rectified(m, lp, 0.7))


def test_packed_refuses_a_model_that_carries_its_state_on():
    sizes = {"vocab_size": 29, "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}
    model = MambaForCausalLM(MambaConfig(**sizes, pad_token_id=0, eos_token_id=1)).eval()
    with pytest.raises(ValueError, match="--packed: MambaForCausalLM carries its state"):
        check_packed(make_policy(model, tokenizer()).model)
    check_packed(make_policy(untrained(0).eval(), tokenizer()).model)


def test_advantage_one_asks_for_no_reward_and_trains_all_alike(policy):
    settings = config(group=GroupConfig(1, 3, 2, advantage="one"))
    torch.manual_seed(0)
    batch = make_batch(policy, EXAMPLES[:3], settings, rewards=None)
    assert [m.reward for m in batch.members] == [None] * 18
    check(policy, batch, settings, batch.members, lambda m, lp: rectified(replace(m, advantage=1.0), lp, 0.7))


def test_truncated_mask_neither_trains_nor_counts_own_responses_that_were_cut(policy, rewards):
    settings = config(sampling=SamplingConfig(truncated="mask"))
    batch = fixed_batch(policy, rewards, settings)
    cut = next(m for m in batch.members if m.source == "self" and m.group < 2)
    given = next(m for m in batch.members if m.source == "teacher" and m.group < 2)
    for m in batch.members:
        m.truncated = m is cut or m is given
    cut.advantage = given.advantage = -1.0
    members = [m for m in batch.members if m is not cut]
    check(policy, batch, settings, members, lambda m, lp: rectified(m, lp, 0.7))


def old_ones(policy, batch, settings, shift):
    """Recorded log-probs of a policy that was `shift` nats away, up and down in turns."""
    for i, (m, found) in enumerate(zip(batch.members, token_logprobs(policy, batch.members, settings), strict=True)):
        m.old_logprobs = [x + shift * (-1) ** i for x in found]


@pytest.mark.parametrize("objective", ["grpo", "cispo", "gspo"])
def test_ratio_objectives_clip_the_ratio_to_the_recorded_log_probs(policy, rewards, objective):
    reuse = ReuseConfig(passes=2, clip_low=0.1, clip_high=0.3)
    settings = config(objective=objective, reuse=reuse, group=GroupConfig(1, 3, 2))
    batch = fixed_batch(policy, rewards, settings)
    old_ones(policy, batch, settings, 0.25)

    def loss_of(m, lp):
        delta = lp - torch.tensor(m.old_logprobs)
        if objective == "cispo":
            return -delta.exp().detach().clamp(0.9, 1.3) * m.advantage * lp
        ratio = (delta.mean().exp() if objective == "gspo" else delta.exp()).expand_as(lp)
        return -torch.minimum(ratio * m.advantage, ratio.clamp(0.9, 1.3) * m.advantage)

    check(policy, batch, settings, batch.members, loss_of)
    assert 0.1 < accumulate_gradients(policy, batch, settings)["clip_fraction"] < 0.9
    policy.model.zero_grad()


def test_kl_pulls_every_token_towards_the_reference(policy, rewards):
    settings = config(reuse=ReuseConfig(kl=0.3))
    batch = fixed_batch(policy, rewards, settings)  # its last group is flat, and has a KL all the same
    for i, (m, found) in enumerate(zip(batch.members, token_logprobs(policy, batch.members, settings), strict=True)):
        m.ref_logprobs = [x + 0.4 * (-1) ** i for x in found]

    def loss_of(m, lp):
        d = torch.tensor(m.ref_logprobs) - lp
        return rectified(m, lp, 0.7) + 0.3 * (d.exp() - d - 1)

    check(policy, batch, settings, batch.members, loss_of)
    up, down = (torch.tensor(d).exp() - d - 1 for d in (0.4, -0.4))
    tokens = [len(m.response) for m in batch.members]
    expected = (up * sum(tokens[::2]) + down * sum(tokens[1::2])) / sum(tokens)
    assert accumulate_gradients(policy, batch, settings)["kl"] == pytest.approx(expected.item(), rel=1e-4)
    policy.model.zero_grad()


def test_token_logprobs_are_those_of_the_models_own_logits(policy, rewards):
    batch = fixed_batch(policy, rewards, config())
    found = token_logprobs(policy, batch.members, config(optim=OptimConfig(micro_batch=4)))
    for m, logprobs in zip(batch.members, found, strict=True):
        assert_close(torch.tensor(logprobs), response_logprobs(policy, m.prompt, m.response), rtol=1e-5, atol=1e-5)


def test_importance_weights_are_capped_and_of_own_tokens_alone(policy, rewards):
    settings = config(reuse=ReuseConfig(importance_cap=1.2))
    batch = fixed_batch(policy, rewards, settings)
    old_ones(policy, batch, settings, 0.0)
    own = [m for m in batch.members if m.source == "self"]
    for m in own:  # the sampler was off by half a nat, in turns up and down
        m.logprobs = [x + 0.5 * (-1) ** t for t, x in enumerate(m.old_logprobs)]

    def loss_of(m, lp):
        if m.source != "self":
            return rectified(m, lp, 0.7)
        return rectified(m, lp, 0.7) * (torch.tensor(m.old_logprobs) - torch.tensor(m.logprobs)).exp().clamp(max=1.2)

    check(policy, batch, settings, batch.members, loss_of)
    for reuse in (settings.reuse, ReuseConfig(importance_cap=1.2, passes=2)):
        found = accumulate_gradients(policy, batch, replace(settings, reuse=reuse))
        assert found["gap"] == pytest.approx(0.5, rel=1e-4)
    for m in batch.members:
        m.old_logprobs = None  # later updates are of another policy, and nothing says how far the sampler was
    assert "gap" not in accumulate_gradients(policy, batch, config(reuse=ReuseConfig(passes=2)))
    policy.model.zero_grad()


def test_metrics_by_source_are_means_over_their_tokens(policy, rewards):
    batch = fixed_batch(policy, rewards, config())
    numbers = accumulate_gradients(policy, batch, config(optim=OptimConfig(micro_batch=4)))
    policy.model.zero_grad()
    active = [m for m in batch.members if m.advantage != 0]
    for source in ("expert", "teacher", "self"):
        with torch.no_grad():
            lp = torch.cat([response_logprobs(policy, m.prompt, m.response) for m in active if m.source == source])
        p = lp.exp()
        assert numbers[f"nll_{source}"] == pytest.approx(-lp.mean().item(), rel=1e-4)
        assert numbers[f"mean_c_{source}"] == pytest.approx(torch.where(p < 0.7, p, 1.0).mean().item(), rel=1e-4)
        assert numbers[f"rectified_fraction_{source}"] == pytest.approx((p < 0.7).float().mean().item(), rel=1e-4)
    assert numbers["gap"] < 1e-5  # one machine, one precision


def test_kl_counts_the_tokens_of_flat_groups_whatever_count_flat_says(policy, rewards):
    """They are trained on, and a denominator without them would multiply the penalty."""
    found = []
    for count_flat in (True, False):
        settings = config(group=GroupConfig(1, 3, 2, count_flat=count_flat), reuse=ReuseConfig(kl=0.3))
        batch = fixed_batch(policy, rewards, settings)
        for m, logprobs in zip(batch.members, token_logprobs(policy, batch.members, settings), strict=True):
            m.ref_logprobs = [x + 0.4 for x in logprobs]
        found.append(accumulate_gradients(policy, batch, settings)["loss"])
        policy.model.zero_grad()
    assert found[0] == found[1] != 0
