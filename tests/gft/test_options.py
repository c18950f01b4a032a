"""Options: each has a range, none does nothing in silence, and those that messages name exist."""

import math
import re
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import pytest

import gft
from gft.reward_options import reward_pool
from gft.settings.config import EMBEDDED, EvaluateConfig, TrainConfig
from gft.settings.options import OptionError, check_effects, numbers, option
from gft.settings.parts import (
    EvalConfig,
    GroupConfig,
    ModelConfig,
    OptimConfig,
    ReuseConfig,
    RewardLimits,
    SamplingConfig,
)
from gft.teacher.sample import SampleConfig

ROOT = Path(gft.__file__).parents[1]

# What of nan, inf, -inf, -1, 0, 2**63 an option takes; every other value of these is refused.
TAKES = {
    "steps": {0, 2**63},
    "rollout_steps": {2**63},
    "passes": {2**63},
    "clip_low": {0, 2**63},
    "clip_high": {0, 2**63},
    "importance_cap": {2**63},
    "kl": {0, 2**63},
    "prompts_per_step": {2**63},
    "experts": {0, 2**63},
    "teachers": {0, 2**63},
    "own": {0, 2**63},
    "max_prompt_tokens": {2**63},
    "max_given_tokens": {2**63},
    "max_new_tokens": {2**63},
    "temperature": {2**63},
    "batch": {2**63},
    "vllm_memory": set(),
    "lr": {2**63},
    "min_lr": {0, 2**63},
    "weight_decay": {0, 2**63},
    "adam_beta1": {0},
    "adam_beta2": {0},
    "adam_epsilon": {2**63},
    "lora": {2**63},
    "lora_alpha": {2**63},
    "warmup": {0, 2**63},
    "max_grad_norm": {math.inf, 2**63},  # inf clips nothing
    "micro_batch": {2**63},
    "bad_steps": {2**63},
    "eval_every": {0, 2**63},
    "eval_prompts": {0, 2**63},
    "eval_samples": {2**63},
    "eval_answers": {0, 2**63},
    "tau": {0},  # 0 is the plain weighted NLL
    "max_bad_fraction": {0},
    "max_failed_rewards": {0},
    "save_every": {0, 2**63},
    "keep": {0, 2**63},  # 0: all
    "reward_workers": set(),
    "reward_seconds": set(),
    "reward_memory": set(),
    "sparse": {0},
    "seed": {0},
    "prompts": {2**63},
    "samples": {0, 2**63},  # 0: greedy alone
}
TRAIN = replace(
    EMBEDDED,
    objective="gft",
    group=GroupConfig(1, 1, 1),
    reuse=ReuseConfig(1, 1, 0.2, 0.2, 0.1, 2.0),
    sparse=0.1,
    evaluate=EvalConfig(1, 1, 1),
    network=ModelConfig(lora=1, lora_alpha=1),
    limits=RewardLimits(2),
)
EVALUATE = EvaluateConfig(model=Path("m"), limits=RewardLimits(2))
SAMPLE = SampleConfig(model=Path("m"), data="d.jsonl", out=Path("g.jsonl"), samples=4, prompts=1, sampler="vllm")


def with_value(config, name, value):
    """The configuration with one number changed, wherever inside it stands."""
    changes = {}
    for field in fields(config):
        part = getattr(config, field.name)
        if field.name == name:
            changes[name] = value
        elif is_dataclass(part) and name in {f.name for f in fields(part)}:
            changes[field.name] = replace(part, **{name: value})
    return replace(config, **changes)


@pytest.mark.parametrize(
    ("config", "name"),
    [(config, field.name) for config in (TRAIN, EVALUATE, SAMPLE) for field, _ in numbers(config)],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_every_number_is_refused_by_name_or_taken_on_purpose(config, name):
    for value in (math.nan, math.inf, -math.inf, -1, 0, 2**63):
        if value in TAKES[name]:
            with_value(config, name, value)
            continue
        with pytest.raises(OptionError) as caught:
            with_value(config, name, value)
        assert str(caught.value).startswith(f"{option(name)} is {value}; it must be ")


def test_the_walk_meets_every_number_of_the_command_line(helptext):
    """The walk above is only as good as its list of fields."""
    walked = {option(field.name) for config in (TRAIN, EVALUATE, SAMPLE) for field, _ in numbers(config)}
    shown = set(re.findall(r"(--[a-z0-9-]+) (?:\{None\}\|)?(?:INT|FLOAT)", helptext))
    assert walked == shown
    assert walked == {option(name) for name in TAKES}


@pytest.mark.parametrize(("name", "value"), [("tau", 1.0), ("sparse", 0.5), ("seed", 2**63 - 1), ("steps", 1)])
def test_values_at_the_edge_are_taken(name, value):
    assert value in {found for field, found in numbers(with_value(TRAIN, name, value)) if field.name == name}


@pytest.mark.parametrize(
    ("name", "value"), [("tau", 1.01), ("max_bad_fraction", 1.01), ("sparse", 1.0), ("steps", 2.5)]
)
def test_values_beyond_the_edge_are_refused(name, value):
    with pytest.raises(OptionError, match=f"^{option(name)} is {value}; it must be"):
        with_value(TRAIN, name, value)


# Without effect

SFT = {"objective": "sft", "model": Path("m"), "data": "d.jsonl"}
GFT = {**SFT, "objective": "gft"}
NOTHING = ", and would do nothing"
HELD_OUT = {"evaluate": EvalConfig(eval_prompts=2)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({**SFT, "tau": 0.5}, f"--tau is 0.5{NOTHING}: the objective sft has no tau."),
        ({**GFT, "objective": "grpo", "tau": 0.5}, f"--tau is 0.5{NOTHING}: the objective grpo has no tau."),
        (
            {**SFT, "reward": "math"},
            f"--reward is math{NOTHING}: the objective sft asks for no rewards, and",
        ),
        ({**SFT, "group": GroupConfig(scale="none")}, f"--scale is none{NOTHING}: every response has the advantage 1"),
        ({**SFT, "group": GroupConfig(singleton="zero")}, f"--singleton is zero{NOTHING}: "),
        ({**SFT, "group": GroupConfig(count_flat=False)}, f"--count-flat is False{NOTHING}: "),
        (
            {**SFT, "sampling": SamplingConfig(temperature=0.5)},
            f"--temperature is 0.5{NOTHING}: no response is sampled",
        ),
        (
            {**GFT, "sampling": SamplingConfig(temperature=0.5), "group": GroupConfig(own=0)},
            f"--temperature is 0.5{NOTHING}: no response is sampled for training (--own is 0)",
        ),
        (
            {**GFT, "limits": RewardLimits(reward_seconds=9)},
            f"--reward-seconds is 9{NOTHING}: --reward number runs in no worker.",
        ),
        (
            {**SFT, "limits": RewardLimits(reward_memory=9)},
            f"--reward-memory is 9{NOTHING}: the objective sft asks for no rewards",
        ),
        (
            {**GFT, "reward": "math +", "limits": RewardLimits(4)},
            "--reward math +: reward = 'math +' cannot be read from '+' on",
        ),
        ({**GFT, "evaluate": EvalConfig(eval_every=5)}, f"--eval-every is 5{NOTHING}: nothing is held out"),
        ({**GFT, "evaluate": EvalConfig(eval_samples=5)}, f"--eval-samples is 5{NOTHING}: nothing is held out"),
        (
            {**GFT, "eval_data": "e.jsonl", "evaluate": EvalConfig(eval_prompts=0)},
            "--eval-data is e.jsonl and --eval-prompts is 0: leave one of them out.",
        ),
        ({"model": Path("m")}, "give --model and --data together"),
        ({"data": "d.jsonl"}, "give --model and --data together"),
    ],
)
def test_check_effects_refuses_what_would_do_nothing(changes, message):
    with pytest.raises(OptionError) as caught:
        check_effects(TrainConfig(**changes), TrainConfig())
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "changes",
    [
        SFT,
        {**GFT, "tau": 0.5, "reward": "math", "group": GroupConfig(scale="none", singleton="zero", count_flat=False)},
        {**GFT, "sampling": SamplingConfig(temperature=0.5)},
        {**SFT, "group": GroupConfig(own=2), "sampling": SamplingConfig(temperature=0.5)},
        {**SFT, **HELD_OUT, "reward": "math"},  # scores the held-out responses
        {**SFT, "eval_data": "e.jsonl", "evaluate": EvalConfig(eval_every=5, eval_samples=5)},
        {**SFT, "optim": OptimConfig(warmup=500)},
        {**GFT, "reward": "math", "limits": RewardLimits(4, 9, 9)},
        {**GFT, "reward": "number + m:f", "limits": RewardLimits(4, 9, 9)},
        {"limits": RewardLimits(4, 9, 9)},  # the embedded task's own reward runs in workers
        {**SFT, "optim": OptimConfig(schedule="linear", warmup=99, min_lr=1e-6)},
        {"tau": 0.5},  # the comparison trains by gft too
    ],
)
def test_check_effects_takes_what_does_something(changes):
    check_effects(TrainConfig(**changes), TrainConfig())


def test_check_effects_takes_the_embedded_recipe_with_any_objective():
    for objective in (None, "sft", "gft", "grpo"):
        check_effects(replace(EMBEDDED, objective=objective), EMBEDDED)


def test_evaluate_config_refuses_a_reward_for_the_embedded_task():
    with pytest.raises(OptionError, match="--reward is math, and would do nothing: without --data"):
        EvaluateConfig(model=Path("m"), reward="math")


def train_config(**options):
    """A run's options, once they are looked at as a whole."""
    found = TrainConfig(model=Path("m") if "data" in options else None, **options)
    check_effects(found, TrainConfig())
    return found


@pytest.mark.parametrize("make", [lambda **o: EvaluateConfig(model=Path("m"), **o), train_config])
def test_prompt_suffix_is_refused_where_it_would_do_nothing(make):
    with pytest.raises(OptionError, match=r"--prompt-suffix is ' ', and would do nothing: leave it out"):
        make(data="d.jsonl", prompt_suffix=" ")
    with pytest.raises(OptionError, match="--prompt-suffix is 'x', and would do nothing: without --data"):
        make(prompt_suffix="x")
    assert make(data="d.jsonl", prompt_suffix="x").prompt_suffix == "x"


def test_evaluate_config_refuses_limits_of_a_reward_without_workers():
    with pytest.raises(OptionError, match="--reward-workers is 3, and would do nothing: --reward number runs in no"):
        EvaluateConfig(model=Path("m"), data="d.jsonl", limits=RewardLimits(3))
    assert EvaluateConfig(model=Path("m"), data="d.jsonl", reward="math", limits=RewardLimits(3)).limits.reward_workers


def test_reward_pool_has_the_limits_of_the_options(monkeypatch):
    monkeypatch.setattr("gft.reward_options.RewardPool", lambda reward, **limits: (reward, limits))
    monkeypatch.setattr("gft.reward_options.usable_cores", lambda: 7)
    assert reward_pool("math", RewardLimits(3, 0.5, 77)) == ("math", {"workers": 3, "seconds": 0.5, "memory_mib": 77})
    assert reward_pool("math", RewardLimits())[1]["workers"] == 7
    for ranks, workers in ((2, 3), (8, 1)):  # of this machine: they share its cores
        monkeypatch.setattr("gft.reward_options.local_count", lambda ranks=ranks: ranks)
        assert reward_pool("math", RewardLimits())[1]["workers"] == workers


# Devices and engines
