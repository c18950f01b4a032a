"""KL to the reference policy in a run: measured, pulled by, and the same after a resume."""

from __future__ import annotations

import pytest

from gft import cli
from gft import train as loop
from gft.commands import train as run_command
from gft.demo.base_model import tokenizer, untrained
from gft.metrics import read_metrics
from gft.parts import OptimConfig, ReuseConfig
from gft.policy import make_policy
from gft.reference import make_reference

from .faults.tiny import command, make_inputs
from .runs import config, numbers, run, weights

FAST = OptimConfig(lr=1e-2, micro_batch=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("kl")
    make_inputs(path)
    return path


def fresh():
    return make_policy(untrained(0).eval(), tokenizer())


def trained(kl, rewards, out):
    policy = fresh()
    reference = None if kl is None else make_reference(fresh())
    return run(policy, rewards, out, config(steps=4, optim=FAST, reuse=ReuseConfig(kl=kl)), reference=reference)[1]


def test_kl_of_0_measures_and_changes_nothing(rewards, tmp_path):
    without, measured = trained(None, rewards, tmp_path / "none"), trained(0.0, rewards, tmp_path / "zero")
    kl = [row.pop("kl") for row in measured]
    assert numbers(measured) == numbers(without)
    assert weights(tmp_path / "none" / "model") == weights(tmp_path / "zero" / "model")
    assert kl[0] == pytest.approx(0, abs=1e-6)
    assert kl[-1] > 1e-3


def test_kl_keeps_the_policy_near(rewards, tmp_path):
    free, held = trained(0.0, rewards, tmp_path / "free"), trained(3.0, rewards, tmp_path / "held")
    assert held[-1]["kl"] < free[-1]["kl"] / 2


def test_kl_after_a_resume_is_from_the_model_that_the_run_began_with(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(run_command, "run_figure", lambda rows, path: path)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    cli.main(command(folder, whole, "--kl", "0.1"))
    step, steps = loop.train_step, []

    def third_fails(*args):
        steps.append(1)
        if len(steps) == 3:
            raise OSError("as on purpose")
        return step(*args)

    monkeypatch.setattr(loop, "train_step", third_fails)
    with pytest.raises(SystemExit):
        cli.main(command(folder, parts, "--kl", "0.1"))
    cli.main(["train", "--resume", "--out", str(parts)])
    assert numbers(read_metrics(parts / "metrics.jsonl")) == numbers(read_metrics(whole / "metrics.jsonl"))
    assert weights(parts / "model") == weights(whole / "model")


def test_kl_to_another_folder(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(run_command, "run_figure", lambda rows, path: path)
    untrained(3).save_pretrained(tmp_path / "other")
    tokenizer().save_pretrained(tmp_path / "other")
    cli.main(command(folder, tmp_path / "out", "--kl", "0", "--reference", str(tmp_path / "other")))
    assert read_metrics(tmp_path / "out" / "metrics.jsonl")[1]["kl"] > 0.01


def test_reference_without_kl_is_refused(folder, tmp_path):
    with pytest.raises(SystemExit, match="--reference is x, and would do nothing: no KL is asked for"):
        cli.main(command(folder, tmp_path / "out", "--reference", "x"))
