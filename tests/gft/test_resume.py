"""A run that is stopped and goes on has the bits of one that was never stopped."""

from dataclasses import replace
from importlib import import_module

import pytest

from gft import train as loop
from gft.demo import sort_letters
from gft.demo.base_model import tokenizer, untrained
from gft.model.policy import make_policy
from gft.settings.config import EMBEDDED
from gft.settings.parts import EvalConfig, GroupConfig, OptimConfig
from gft.stop import Stopped

from .runs import config, numbers, resume, run, weights

HELD_OUT = sort_letters.examples(4, seed=9)
STEPS = 12
# Epochs end within steps, micro-batches within groups, and every fifth step is evaluated.
SETTINGS = config(
    steps=STEPS,
    group=GroupConfig(1, 1, 2),
    sampling=replace(EMBEDDED.sampling, max_new_tokens=4),
    optim=OptimConfig(lr=3e-3, micro_batch=5, warmup=3),
    evaluate=EvalConfig(eval_every=5, eval_prompts=4, eval_samples=1),
)


def fresh():
    return make_policy(untrained(0).eval(), tokenizer())


@pytest.fixture(scope="module")
def whole(rewards, tmp_path_factory):
    """The run that is never stopped: what it returns, its folder, its numbers."""
    out = tmp_path_factory.mktemp("whole")
    result, rows = run(fresh(), rewards, out, SETTINGS, HELD_OUT)
    return result, out, numbers(rows)


def stop_at(monkeypatch, name, call):
    """Let the nth call of a function of the loop end as a polled signal ends it."""
    module, _, function = name.rpartition(".")
    original, calls = getattr(import_module(f"gft.{module}"), function), []

    def counted(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            raise Stopped(15)
        return original(*args, **kwargs)

    monkeypatch.setattr(f"gft.{name}", counted)


def stopped(rewards, out, settings, monkeypatch, name, call):
    with monkeypatch.context() as patch:
        stop_at(patch, name, call)
        with pytest.raises(Stopped):
            run(fresh(), rewards, out, settings, HELD_OUT)


def assert_same(whole, out, outcome):
    result, folder, rows = whole
    assert outcome[0] == result
    assert numbers(outcome[1]) == rows
    assert weights(out / "model") == weights(folder / "model")


def some(values, always):
    """The values as parameters, slow but for a few."""
    return [value if value in always else pytest.param(value, marks=pytest.mark.slow) for value in values]


@pytest.mark.parametrize("k", some(range(1, STEPS + 1), {1, 6}))
def test_resume_after_every_step_is_bitwise_the_whole_run(k, whole, rewards, tmp_path, monkeypatch):
    """Stopped before the kth step has its rollouts."""
    stopped(rewards, tmp_path, SETTINGS, monkeypatch, "train.make_batch", k)
    assert_same(whole, tmp_path, resume(rewards, tmp_path, SETTINGS, HELD_OUT))


@pytest.mark.parametrize("k", some([1, 2, 7], {2}))
def test_resume_with_rollouts_in_use_is_bitwise_and_samples_nothing_again(k, whole, rewards, tmp_path, monkeypatch):
    """Stopped between two micro-batches of the kth step."""
    stopped(rewards, tmp_path, SETTINGS, monkeypatch, "update.collate", 3 * (k - 1) + 2)
    sampled, original = [], loop.make_batch

    def noted(*args):
        sampled.append(1)
        return original(*args)

    monkeypatch.setattr(loop, "make_batch", noted)
    assert_same(whole, tmp_path, resume(rewards, tmp_path, SETTINGS, HELD_OUT))
    assert len(sampled) == STEPS - k


@pytest.mark.parametrize("evaluation", some([1, 2, 3, 4], {2, 4}))
def test_resume_within_an_evaluation_is_bitwise(evaluation, whole, rewards, tmp_path, monkeypatch):
    """Before the first step, after the fifth and the tenth, and after the last."""
    stopped(rewards, tmp_path, SETTINGS, monkeypatch, "train.evaluate", evaluation)
    assert_same(whole, tmp_path, resume(rewards, tmp_path, SETTINGS, HELD_OUT))


def test_resume_of_a_finished_run_changes_nothing(whole, rewards, tmp_path, monkeypatch):
    run(fresh(), rewards, tmp_path, SETTINGS, HELD_OUT)
    monkeypatch.setattr("gft.train.train_step", lambda *args: pytest.fail("a step was made"))
    assert_same(whole, tmp_path, resume(rewards, tmp_path, SETTINGS, HELD_OUT))


def test_resume_three_times_with_periodic_saves_is_bitwise(whole, rewards, tmp_path, monkeypatch):
    settings = replace(SETTINGS, save_every=2, keep=1)
    stopped(rewards, tmp_path, settings, monkeypatch, "train.make_batch", 4)
    for call in (3, 2):
        with monkeypatch.context() as patch:
            stop_at(patch, "train.optimizer_step", call)  # as if killed there: the state is of no one moment
            with pytest.raises(Stopped):
                resume(rewards, tmp_path, settings, HELD_OUT)
    assert_same(whole, tmp_path, resume(rewards, tmp_path, settings, HELD_OUT))
    assert [path.name for path in tmp_path.glob("*checkpoint*")] == ["checkpoint-12"]


def test_resume_keeps_the_order_of_other_seeds(rewards, tmp_path, monkeypatch):
    settings = replace(SETTINGS, seed=3, steps=5, objective="sft")
    _, rows = run(fresh(), rewards, tmp_path / "whole", settings, HELD_OUT)
    stopped(rewards, tmp_path / "cut", settings, monkeypatch, "train.make_batch", 4)
    assert numbers(resume(rewards, tmp_path / "cut", settings, HELD_OUT)[1]) == numbers(rows)
