"""Rollouts are samples of the policy itself, cut where they end."""

import pytest
import torch
from transformers import GenerationConfig, GenerationMixin

from gft.demo.base_model import tokenizer, untrained
from gft.policy import make_policy
from gft.rollout import sample

from .logprobs import trainers_logprobs

EOS = 1
PROMPTS = ("qgzbmtac=", "ba=", "hello=")


def test_sample_marks_truncation_and_keeps_the_end_token(policy):
    torch.manual_seed(0)
    prompts = [policy.encode_prompt("qgzbmtac="), policy.encode_prompt("ba=")] * 32
    rollouts = sample(policy, prompts, max_new_tokens=12, temperature=1.0, batch=16)
    ended = [r for r in rollouts if not r.truncated]
    assert 0 < len(ended) < len(rollouts)
    assert all(r.tokens[-1] == EOS and EOS not in r.tokens[:-1] for r in ended)
    assert all(len(r.tokens) == 12 and EOS not in r.tokens for r in rollouts if r.truncated)


def test_sample_greedy_ignores_padding_and_order(policy):
    prompts = [policy.encode_prompt(p) for p in PROMPTS]
    together = sample(policy, prompts, max_new_tokens=6, temperature=0.0, batch=3)
    alone = [sample(policy, [p], max_new_tokens=6, temperature=0.0, batch=1)[0] for p in prompts]
    assert [r.tokens for r in together] == [r.tokens for r in alone]
    for batched, single in zip(together, alone, strict=True):
        assert batched.logprobs == pytest.approx(single.logprobs, abs=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7, 0.0])
def test_sample_gives_the_trainers_logprobs(temperature):
    """Of every token, the end token included. A greedy sample has them at temperature 1."""
    policy = make_policy(untrained(seed=0).eval(), tokenizer(), temperature or 1.0)
    prompts = [policy.encode_prompt(p) for p in PROMPTS] * 8
    torch.manual_seed(0)
    rollouts = sample(policy, prompts, max_new_tokens=12, temperature=temperature, batch=7)
    assert {r.truncated for r in rollouts} == ({True, False} if temperature else {True})
    for rollout, expected in zip(rollouts, trainers_logprobs(policy, prompts, rollouts), strict=True):
        assert len(rollout.logprobs) == len(rollout.tokens)
        assert rollout.logprobs == pytest.approx(expected, abs=1e-5)


def test_sample_draws_what_generate_alone_draws(policy, monkeypatch):
    """Reading log-probs changes no token: they are those of generate() without it."""
    prompts = [policy.encode_prompt(p) for p in PROMPTS]
    torch.manual_seed(3)
    read = sample(policy, prompts, max_new_tokens=9, temperature=0.8, batch=3)
    monkeypatch.setattr(GenerationMixin, "generate", _generate_alone(GenerationMixin.generate))
    torch.manual_seed(3)
    alone = sample(policy, prompts, max_new_tokens=9, temperature=0.8, batch=3)
    assert not any(logprob for r in alone for logprob in r.logprobs)
    assert [r.tokens for r in alone] == [r.tokens for r in read]


def _generate_alone(generate):
    """generate() without processors and criteria, then as many steps of made-up log-probs."""

    def alone(model, *, stopping_criteria, logits_processor, **inputs):
        full = generate(model, **inputs)
        for heed in stopping_criteria:
            heed.drawn = [torch.zeros(len(full))] * (full.shape[1] - inputs["input_ids"].shape[1])
        return full

    return alone


def test_sample_ignores_the_models_own_generation_settings(policy):
    """With a top-k of 1 from the model's files every sample would be the greedy one."""
    policy.model.generation_config = GenerationConfig(do_sample=True, top_k=1, eos_token_id=[EOS], pad_token_id=0)
    torch.manual_seed(0)
    rollouts = sample(policy, [policy.encode_prompt("ba=")] * 16, max_new_tokens=4, temperature=1.0, batch=16)
    assert len({tuple(r.tokens) for r in rollouts}) > 8
    assert policy.model.generation_config.top_k == 1


def test_sample_follows_the_policys_distribution(policy):
    """First-token frequencies of 4,096 samples against the model's probabilities: 5 sigma."""
    prompt = policy.encode_prompt("ba=")
    torch.manual_seed(0)
    first = torch.tensor(
        [r.tokens[0] for r in sample(policy, [prompt] * 4096, max_new_tokens=1, temperature=1.0, batch=4096)]
    )
    p = policy.model(torch.tensor([prompt])).logits[0, -1].softmax(-1).detach()
    found = torch.bincount(first, minlength=len(p)) / 4096
    assert ((found - p).abs() <= 5 * (p * (1 - p) / 4096).sqrt() + 1e-6).all()


def test_sample_stops_at_the_end_of_the_templates_turn(policy):
    """Given responses end with it, though the model's generation settings do not list it."""
    end = policy.tokenizer("z").input_ids[0]
    policy.tokenizer.add_special_tokens({"additional_special_tokens": ["z"]})
    policy.tokenizer.chat_template = "{% for m in messages %}{{ m.content }}z{% endfor %}"
    assert policy.encode_response("ab")[-1] == policy.end_token == end
    torch.manual_seed(0)
    rollouts = sample(policy, [policy.encode_prompt("ba=")] * 64, max_new_tokens=40, temperature=1.0, batch=64)
    ended = [r.tokens for r in rollouts if not r.truncated]
    assert {tokens[-1] for tokens in ended} == {EOS, end}
    assert all({EOS, end}.isdisjoint(tokens[:-1]) for tokens in ended)
