"""What rows become by --prompt-suffix and --long-given, and what --resume makes of limits."""

from __future__ import annotations

import json

import pytest

from gft import cli
from gft.checkpoint import save_model
from gft.commands import evaluate as eval_command
from gft.commands import train as train_command
from gft.demo import sort_letters
from gft.metrics import read_metrics

from ..rewards import kinds
from ..test_cli_errors import demonstrations, line

LENGTH = f"{kinds.__name__}:length"


class Caught(RuntimeError):
    """What a command was about to do."""


@pytest.fixture
def folder(policy, tmp_path):
    return save_model(policy, tmp_path / "base")


def caught(monkeypatch, command, function, *arguments):
    """The arguments that a command calls a function with."""

    def catch(*given, **named):
        raise Caught(given)

    monkeypatch.setattr(command, function, catch)
    monkeypatch.setenv("GFT_TRACEBACK", "1")
    with pytest.raises(Caught) as found:
        cli.main([str(a) for a in arguments])
    return found.value.args[0]


def test_prompt_suffix_is_put_on_training_held_out_and_evaluation_data(folder, tmp_path, monkeypatch):
    train, held_out = (
        demonstrations(tmp_path / f"{name}.jsonl", sort_letters.examples(3, seed=0)) for name in ("t", "e")
    )
    options = ["--model", folder, "--prompt-suffix", "abc"]
    files = ["--data", train, "--eval-data", held_out, "--objective", "sft", "--out", tmp_path / "run"]
    _, examples, held, *_ = caught(monkeypatch, train_command, "train", "train", *options, *files)
    assert len(examples) == len(held) == 3
    assert all(e.prompt.endswith("=\n\nabc") for e in [*examples, *held])
    _, evaluated, *_ = caught(
        monkeypatch, eval_command, "evaluate", "eval", *options, "--data", held_out, "--max-new-tokens", "9"
    )
    assert all(e.prompt.endswith("=\n\nabc") for e in evaluated)


def run(folder, tmp_path, out, *options):
    """Two steps on demonstrations, of which the first one is too long, and no own responses."""
    rows = [{"prompt": e.prompt, "completion": e.solution, "solution": e.solution} for e in sort_letters.examples(6, 0)]
    rows[0]["completion"] *= 5
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sizes = ["--steps", "2", "--prompts-per-step", "6", "--own", "0", "--max-given-tokens", "10"]
    files = ["--model", folder, "--data", tmp_path / "d.jsonl", "--out", out]
    cli.main(["train", *map(str, [*files, *sizes, *options])])
    return read_metrics(out / "metrics.jsonl")


def test_long_given_decides_what_a_run_trains_on(folder, tmp_path, capsys):
    dropped = run(folder, tmp_path, tmp_path / "drop", "--reward", "exact")
    assert "1 given responses (1 expert) are longer than 10 tokens" in (said := capsys.readouterr().out)
    assert "1 examples have no other response and were left out" in said
    assert [(row["sequences"], row["truncated"], row["reward"]) for row in dropped] == [(6, 0.0, 1.0)] * 2
    cut = run(folder, tmp_path, tmp_path / "cut", "--reward", f"exact + 0.5*{LENGTH}", "--long-given", "cut")
    assert "1 given responses (1 expert) are longer than 10 tokens" in capsys.readouterr().out
    assert [(row["sequences"], row["truncated"]) for row in cut] == [(6, 1 / 6)] * 2
    letters = sort_letters.LENGTH
    assert cut[0]["reward/exact"] == pytest.approx(5 / 6)
    assert cut[0][f"reward/{LENGTH}"] == pytest.approx(letters * (5 + 5) / 6)  # the whole text is scored
    assert cut[0]["reward"] == pytest.approx(5 / 6 + letters * 10 / 12)


def test_resume_takes_other_workers_and_no_other_time(folder, tmp_path):
    """A shorter call could fail where a longer one had a reward: the numbers would be others."""
    out = tmp_path / "run"
    rows = run(folder, tmp_path, out, "--reward", f"exact + 0.5*{LENGTH}", "--reward-workers", "1")
    cli.main(["train", "--resume", "--out", str(out), "--reward-workers", "2"])
    assert read_metrics(out / "metrics.jsonl") == rows
    said = line("train", "--resume", "--out", out, "--reward-seconds", "2")
    assert "--reward-seconds is 2.0, and 5.0 in the run that --resume goes on with" in said
    assert "--long-given is cut, and drop in the run" in line("train", "--resume", "--out", out, "--long-given", "cut")
