"""Every sampler keeps the promises of `Sampler`; what one cannot keep is refused."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import GenerationConfig

from gft.config import TrainConfig
from gft.demo.base_model import tokenizer, untrained
from gft.options import OptionError, check_effects, check_ranges
from gft.parts import GroupConfig, SamplingConfig
from gft.policy import make_policy
from gft.samplers import check_sampler, draw
from gft.stop import Stopped, held

from . import vllm_stub
from .logprobs import trainers_logprobs
from .test_stop import Missed, arrive, handlers

EOS = 1
SAMPLING = SamplingConfig(max_new_tokens=12, temperature=0.7, batch=5, max_prompt_tokens=16)


@pytest.fixture(autouse=True)
def no_collections(monkeypatch):
    """transformers collects garbage twice a call: most of the time of these tests."""
    monkeypatch.setattr(gc, "collect", lambda *generation: 0)


@pytest.fixture(params=["generate", "continuous", "vllm"])
def sampling(request, monkeypatch):
    """The configuration of a sampler, with the policy that it samples."""
    policy = make_policy(untrained(seed=0).eval(), tokenizer(), SAMPLING.temperature)
    vllm_stub.installed(policy, monkeypatch)
    return policy, replace(SAMPLING, sampler=request.param)


def prompts(policy, times=2):
    return [policy.encode_prompt(p) for p in ("qgzbmtac=", "ba=", "hello=")] * times


def drawn(policy, config, seed=0, times=2):
    torch.manual_seed(seed)
    return draw(policy, prompts(policy, times), config)


def test_draw_gives_the_trainers_logprobs_of_every_token(sampling):
    policy, config = sampling
    rollouts = drawn(policy, config)
    for rollout, expected in zip(rollouts, trainers_logprobs(policy, prompts(policy), rollouts), strict=True):
        assert rollout.logprobs == pytest.approx(expected, abs=1e-5)


def test_draw_gives_the_end_token_or_says_truncated(sampling):
    policy, config = sampling
    rollouts = drawn(policy, config, times=8)
    assert {r.truncated for r in rollouts} == {True, False}
    for r in rollouts:
        assert r.truncated == (EOS not in r.tokens)
        assert len(r.tokens) == 12 if r.truncated else r.tokens.index(EOS) == len(r.tokens) - 1


def test_draw_follows_the_seed_alone(sampling):
    """Also after another call, and it moves torch's random state as any draw does."""
    policy, config = sampling
    first = drawn(policy, config)
    after = torch.rand(1)
    assert drawn(policy, config, seed=1) != first
    assert drawn(policy, config) == first
    assert torch.rand(1) == after != torch.rand(1)
    assert draw(policy, prompts(policy), config) != first


@pytest.mark.parametrize(("sampling", "seeds"), [("continuous", ()), ("vllm", (6,))], indirect=["sampling"])
def test_draw_takes_its_seeds_and_nothing_else_of_the_random_state(sampling, seeds):
    """Both libraries seed torch's own generators, which must not show outside."""
    drawn(*sampling, seed=3)
    found = torch.get_rng_state()
    torch.manual_seed(3)
    torch.randint(2**31, seeds)
    assert torch.equal(found, torch.get_rng_state())


def test_draw_samples_the_current_weights(sampling):
    """Nothing of an earlier call is used: no weights, and no cache of a prompt."""
    policy, config = sampling
    before = drawn(policy, config)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.mul_(1.5)
    after = drawn(policy, config)
    assert [r.tokens for r in after] != [r.tokens for r in before]
    for rollout, expected in zip(after, trainers_logprobs(policy, prompts(policy), after), strict=True):
        assert rollout.logprobs == pytest.approx(expected, abs=1e-5)


def test_draw_ignores_the_models_own_generation_settings(sampling):
    """With a top-k of 1 from the model's files every sample would be the greedy one."""
    policy, config = sampling
    policy.model.generation_config = GenerationConfig(do_sample=True, top_k=1, eos_token_id=[EOS], pad_token_id=0)
    assert len({tuple(r.tokens) for r in drawn(policy, config, times=4)}) > 10
    assert policy.model.generation_config.top_k == 1


def test_draw_ends_at_every_end_token_of_the_policy(sampling):
    """The template's end of a turn too, which the model's own settings do not list."""
    policy, config = sampling
    policy.tokenizer.add_special_tokens({"additional_special_tokens": ["z"]})
    policy.tokenizer.chat_template = "{% for m in messages %}{{ m.content }}z{% endfor %}"
    ends = {EOS, policy.tokenizer("z").input_ids[0]}
    rollouts = drawn(policy, replace(config, max_new_tokens=30), times=8)
    assert {r.tokens[-1] for r in rollouts if not r.truncated} == ends
    assert all(ends.isdisjoint(r.tokens[:-1]) for r in rollouts)


@pytest.mark.parametrize("training", [True, False])
def test_draw_leaves_the_model_as_it_was(sampling, training):
    policy, config = sampling
    policy.model.train(training)
    attention = policy.model.config._attn_implementation
    drawn(policy, config, times=1)
    assert policy.model.training is training
    assert policy.model.config._attn_implementation == attention


def test_draw_is_greedy_at_temperature_0_with_logprobs_at_1(sampling):
    policy, config = sampling
    policy = make_policy(policy.model, policy.tokenizer)
    rollouts = drawn(policy, replace(config, temperature=0.0), times=1)
    assert [r.tokens for r in rollouts] == [
        r.tokens for r in drawn(policy, replace(SAMPLING, temperature=0.0), times=1)
    ]
    for rollout, expected in zip(rollouts, trainers_logprobs(policy, prompts(policy, 1), rollouts), strict=True):
        assert rollout.logprobs == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", ["generate", "continuous"])
def test_a_signal_ends_the_sampling(policy, name):
    reached = []

    def interrupted():
        arrive()
        try:
            draw(policy, prompts(policy), replace(SAMPLING, sampler=name, max_new_tokens=50))
            reached.append("all responses")
        except Stopped:
            reached.append("a signal")

    with handlers(), pytest.raises(Missed), held():
        interrupted()
    assert reached == ["a signal"]


def test_continuous_refuses_a_policy_that_computes_in_bfloat16(policy):
    policy.compute = torch.bfloat16
    with pytest.raises(ValueError, match="give --dtype float32, or --sampler generate"):
        draw(policy, prompts(policy), replace(SAMPLING, sampler="continuous"))


def test_continuous_says_why_transformers_failed(policy, monkeypatch):
    def forward(*args, **kwargs):
        raise ZeroDivisionError("of the model")

    monkeypatch.setattr(policy.model, "forward", forward)
    with pytest.raises(RuntimeError, match=r"continuous batching.*of the model"):
        draw(policy, prompts(policy), replace(SAMPLING, sampler="continuous"))


def test_continuous_reads_prompts_that_are_longer_than_a_pass(monkeypatch):
    """Samples of a prompt that is read in three passes have the log-probs of the whole prompt."""
    monkeypatch.setattr("gft.rollout_continuous.PREFILL", 4)
    policy = make_policy(untrained(seed=0).eval(), tokenizer(), SAMPLING.temperature)
    rollouts = drawn(policy, replace(SAMPLING, sampler="continuous", batch=2))
    for rollout, expected in zip(rollouts, trainers_logprobs(policy, prompts(policy), rollouts), strict=True):
        assert rollout.logprobs == pytest.approx(expected, abs=1e-5)


def test_vllm_is_asked_for_the_trainers_distribution(monkeypatch):
    policy = make_policy(untrained(seed=0).eval(), tokenizer())
    engine = vllm_stub.installed(policy, monkeypatch)
    for _ in range(2):
        drawn(policy, replace(SAMPLING, sampler="vllm", vllm_memory=0.25))
    (made,) = engine.made  # one engine for all calls, asleep between them
    assert made.asleep
    assert made.options["logprobs_mode"] == "processed_logprobs"
    assert (made.options["dtype"], made.options["gpu_memory_utilization"]) == ("float32", 0.25)
    assert (made.options["max_num_seqs"], made.options["max_model_len"]) == (5, 28)
    assert len({asked.seed for asked in made.asked}) == len(made.asked) == 6
    assert not any(asked.detokenize for asked in made.asked)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logprobs": None}, "5 tokens with log-probs for 0"),
        ({"token_ids": (3, 4)}, "2 tokens with log-probs for 5"),
        ({"finish_reason": "abort"}, "'abort' with the token 7"),
        ({"finish_reason": "stop"}, "'stop' with the token 7"),
        ({"token_ids": (3, EOS, 5, 6, 7)}, r"end tokens are \[1\]"),
    ],
)
def test_vllm_is_held_to_what_was_asked(monkeypatch, change, message):
    policy = make_policy(untrained(seed=0).eval(), tokenizer())
    engine = vllm_stub.installed(policy, monkeypatch)
    good = SimpleNamespace(token_ids=(3, 4, 5, 6, 7), finish_reason="length")
    good.logprobs = [{t: SimpleNamespace(logprob=-1.0)} for t in good.token_ids]
    answers = [SimpleNamespace(outputs=[good])]
    monkeypatch.setattr(engine, "generate", lambda self, *args, **kwargs: answers)
    config, prompt = replace(SAMPLING, sampler="vllm"), [policy.encode_prompt("ba=")]
    assert draw(policy, prompt, config) == [([3, 4, 5, 6, 7], True, [-1.0] * 5)]
    vars(good).update(change)
    with pytest.raises(RuntimeError, match=message):
        draw(policy, prompt, config)
    with pytest.raises(RuntimeError, match="1 responses to 2 prompts"):
        draw(policy, prompt * 2, config)


def check(config):
    check_sampler(config.sampling.sampler, config.device, config.dtype)


def config_of(**sampling):
    return TrainConfig(
        model=Path("base"), data="d.jsonl", objective="gft", sampling=SamplingConfig(**sampling), device="cpu"
    )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (replace(config_of(sampler="continuous"), dtype="bfloat16"), "--sampler continuous .*give --dtype float32"),
        (replace(config_of(sampler="continuous"), device="cuda"), "give --dtype float32"),
        (config_of(sampler="vllm"), "--sampler vllm needs --model and a GPU"),
        (replace(config_of(sampler="vllm"), device="cuda"), "the package vllm, which is not installed"),
    ],
)
def test_check_sampler_refuses_what_cannot_run_here(config, message):
    with pytest.raises(OptionError, match=message):
        check(config)


def test_vllm_takes_no_lora(policy, monkeypatch):
    vllm_stub.installed(policy, monkeypatch)
    policy.adapter = object()
    with pytest.raises(ValueError, match="names of a checkpoint, which LoRA's are not"):
        draw(policy, prompts(policy), replace(SAMPLING, sampler="vllm"))
    with pytest.raises(OptionError, match="which those of --lora are not"):
        check_sampler("vllm", "cuda", "auto", lora=True)


def test_check_sampler_takes_the_others(monkeypatch):
    for name in ("generate", "continuous"):
        check(config_of(sampler=name))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    check(config_of(sampler="generate"))
    with pytest.raises(OptionError, match="runs in one process"):
        check(config_of(sampler="continuous"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (replace(config_of(sampler="continuous"), group=GroupConfig(1, 3, 0)), "--sampler is continuous, and would do"),
        (config_of(vllm_memory=0.5), "--vllm-memory is 0.5, and would do nothing: it is of --sampler vllm"),
    ],
)
def test_options_of_samplers_without_effect_are_refused(config, message):
    with pytest.raises(OptionError, match=message):
        check_effects(config, TrainConfig())


def test_vllm_memory_is_a_share():
    with pytest.raises(OptionError, match=r"--vllm-memory is 1\.0; it must be above 0 and below 1"):
        check_ranges(config_of(vllm_memory=1.0))
