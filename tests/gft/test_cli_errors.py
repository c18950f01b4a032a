"""What ends a command: one line, before work is begun or lost, and no trace of the refused run."""

import json
import os
from pathlib import Path

import pytest
import torch

from gft import cli
from gft.commands import train as run_command
from gft.demo import sort_letters
from gft.metrics import read_metrics
from gft.runs.checkpoint import save_model

FAST = ["--steps", "2", "--prompts-per-step", "3", "--max-new-tokens", "9"]


@pytest.fixture
def folder(policy, tmp_path):
    return save_model(policy, tmp_path / "base")


@pytest.fixture
def data(tmp_path):
    """Twenty demonstrations."""
    return demonstrations(tmp_path / "d.jsonl", sort_letters.examples(20, seed=0))


def demonstrations(path, examples):
    rows = [{"prompt": e.prompt, "completion": e.solution, "solution": e.solution} for e in examples]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def train(*options):
    cli.main(["train", *map(str, options)])


def line(*arguments):
    """The one line that a command ends with."""
    with pytest.raises(SystemExit) as stop:
        cli.main([str(a) for a in arguments])
    text = str(stop.value.code)
    assert text.startswith("gft: ")
    assert "\n" not in text
    return text.removeprefix("gft: ")


@pytest.fixture
def nothing_begun(monkeypatch):
    """A test with this fixture fails if a model is loaded or pre-trained."""

    def begun(*args, **kwargs):
        pytest.fail("work was begun")

    for name in ("load_policy", "pretrain", "compare"):
        monkeypatch.setattr(run_command, name, begun)
    monkeypatch.setattr("gft.demo.base_model.pretrain", begun)


@pytest.mark.usefixtures("nothing_begun")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--steps", "-1"], "--steps is -1; it must be at least 0."),
        (["--tau", "nan"], "--tau is nan; it must be from 0 to 1."),
        (["--lr", "inf"], "--lr is inf; it must be positive and finite."),
        (["--objective", "sft", "--tau", "0.5"], "--tau is 0.5, and would do nothing"),
        (["--objective", "gft", "--backend", "triton", "--device", "cpu"], "--backend is 'triton', which does not run"),
        (["--objective", "gft", "--reward", "no.such:reward"], "--reward no.such:reward: "),
        (["--objective", "gft", "--reward", "exakt"], "--reward exakt: "),
        (["--objective", "gft", "--max-prompt-tokens", "1"], "none of 512 prompts has 1 to 1 tokens"),
        (
            ["--objective", "gft", "--max-new-tokens", "56"],
            "embedded:0: a prompt of 9 tokens and a sample of 56 need 65 positions",
        ),
        (["--model", "base", "--data", "none.jsonl"], "none.jsonl: there is no such file."),
        (["--model", "base", "--data", "d.jsonl", "--device", "gpu0"], "--device is 'gpu0', which torch does not know"),
        (["--model", "base", "--data", "d.jsonl", "--eval-prompts", "4"], "--eval-prompts is 4, and at most a tenth"),
        (["--model", "base", "--data", "d.jsonl", "--eval-data", "none.jsonl"], "none.jsonl: there is no such file."),
        (["--model", "base", "--data", "d.jsonl", "--out", "base"], "--model base lies in --out base"),
        (["--model", "base", "--data", "d.jsonl", "--out", "d.jsonl"], "--data d.jsonl lies in --out d.jsonl"),
        (
            ["--model", "base", "--data", "d.jsonl", "--out", "base/config.json"],
            "--out base/config.json lies in --model",
        ),
    ],
)
def test_train_is_refused_before_any_work(options, words, folder, data, tmp_path, monkeypatch):
    monkeypatch.setattr("gft.settings.options.linear_policy_loss", needs_a_gpu)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert words in line("train", *options, *([] if "--out" in options else ["--out", "runs/new"]))
    assert sorted(tmp_path.rglob("*")) == before


def needs_a_gpu(*args, **kwargs):
    raise ValueError("it needs CUDA or ROCm tensors.\nGot cpu.")


def test_compare_is_refused_before_the_base_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr("gft.demo.base_model.pretrain", lambda *args: pytest.fail("work was begun"))
    out = tmp_path / "run"
    for options, words in (
        (["--max-new-tokens", "56"], "a prompt of 9 tokens and a response of 56 need 65 positions"),
        (["--reward", "no.such:reward"], "no.such"),
        (["--own", "3"], "the comparison has groups of its own"),
    ):
        assert words in line("train", *options, "--out", out)
    assert not out.exists()


@pytest.mark.usefixtures("nothing_begun")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--samples", "-1"], "--samples is -1; it must be at least 0."),
        (["--temperature", "0"], "--temperature is 0.0; it must be positive and finite."),
        (["--device", "gpu0"], "--device is 'gpu0'"),
        (["--reward", "exact"], "--reward is exact, and would do nothing"),
        (["--data", "none.jsonl"], "none.jsonl: there is no such file."),
    ],
)
def test_eval_is_refused_before_any_work(options, words):
    assert words in line("eval", "--model", "nowhere", *options)


@pytest.mark.parametrize("command", ["train", "eval"])
def test_positions_are_checked_before_the_first_token(command, folder, data, tmp_path, monkeypatch):
    monkeypatch.setattr("gft.train.train_step", lambda *args: pytest.fail("work was begun"))
    monkeypatch.setattr("gft.evaluation.evaluate.sample", lambda *args: pytest.fail("work was begun"))
    options = ["--model", folder, "--data", data, "--max-new-tokens", "100"]
    if command == "train":
        options += ["--out", tmp_path / "run", "--steps", "1", "--own", "0", "--eval-data", data]
    said = line(command, *options)
    assert f"{data}:1: a prompt of 9 tokens and a response of 100 need 109 positions, and the model has 64" in said
    assert not (tmp_path / "run").exists()


def test_a_row_that_the_chat_template_refuses_is_left_out_below_the_threshold(policy, tmp_path, capsys):
    policy.tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    folder = save_model(policy, tmp_path / "base")
    good = [{"role": "user", "content": "ab="}, {"role": "assistant", "content": "ab"}]
    rows = [good] * 7 + [[{"role": "system", "content": "x"}, *good]]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps({"messages": r}) + "\n" for r in rows))
    options = [
        "--model",
        folder,
        "--data",
        tmp_path / "d.jsonl",
        "--objective",
        "sft",
        "--out",
        tmp_path / "run",
        *FAST,
    ]
    told = line("train", *options)
    assert "d.jsonl:8: the chat template of" in told
    assert "refuses messages of the roles system, user: no system role" in told
    train(*options, "--max-bad-fraction", "0.2")
    assert "d.jsonl: 1 of 8 rows are bad and were left out" in capsys.readouterr().err


def test_train_evaluates_on_eval_data_alone(folder, data, tmp_path, capsys):
    held_out = demonstrations(tmp_path / "e.jsonl", sort_letters.examples(3, seed=9))
    options = ["--model", folder, "--data", data, "--objective", "sft", "--reward", "exact", *FAST]
    options += ["--eval-data", held_out, "--eval-samples", "1"]
    train(*options, "--out", tmp_path / "run")
    assert [r["step"] for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if "eval_greedy" in r] == [0, 2]
    assert "warning" not in capsys.readouterr().err
    train(*options, "--out", tmp_path / "other", "--eval-prompts", "5")
    assert f"warning: --eval-prompts is 5, and {held_out} has 3: all are used" in capsys.readouterr().err


# Folders


def test_train_replaces_only_when_asked_and_only_what_it_writes(folder, data, tmp_path, capsys):
    out = tmp_path / "run"
    options = ["--model", folder, "--data", data, "--objective", "sft", "--out", out, *FAST]
    train(*options)
    (out / "notes.txt").write_text("mine")
    (out / "model.old").mkdir()  # a user's copy, by the name that one would give it
    target = tmp_path / "elsewhere.jsonl"
    (out / "metrics.jsonl").rename(target)
    (out / "metrics.jsonl").symlink_to(target)
    weights, rows = (out / "model" / "model.safetensors").read_bytes(), target.read_bytes()
    said = line("train", *options)
    assert f"--out {out} holds checkpoint-2/, curves.png, metrics.jsonl, model.old/, model/ and 2 more: give" in said
    assert "--resume to go on with the run, or --overwrite to replace" in said
    assert "none of 20 prompts" in line("train", *options, "--overwrite", "--max-prompt-tokens", "1")
    assert (out / "model" / "model.safetensors").read_bytes() == weights
    assert target.read_bytes() == (out / "metrics.jsonl").read_bytes() == rows
    capsys.readouterr()
    train(*options, "--overwrite", "--lr", "1e-3")
    assert "model/ and 2 more: what this run writes is replaced, the rest stays\n" in capsys.readouterr().out
    assert (out / "model" / "model.safetensors").read_bytes() != weights
    assert target.read_bytes() == rows
    assert not (out / "metrics.jsonl").is_symlink()
    assert len(read_metrics(out / "metrics.jsonl")) == 2
    assert (out / "notes.txt").read_text() == "mine"
    written = ["checkpoint-2", "curves.png", "metrics.jsonl", "model", "run.json"]
    assert sorted(p.name for p in out.iterdir()) == sorted([*written, "model.old", "notes.txt"])


def test_paths_with_brackets_are_read_and_shown_as_they_are(policy, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_model(policy, tmp_path / "base[/b]")
    demonstrations(tmp_path / "data[1].jsonl", sort_letters.examples(3, seed=0))
    files = ["--model", "base[/b]", "--data", "data[1].jsonl"]
    train(*files, "--objective", "sft", "--out", "run[/red]:smile:", *FAST)
    assert "model: run[/red]:smile:/model " in capsys.readouterr().out
    cli.main(["eval", *files, "--reward", "exact", "--samples", "1", "--max-new-tokens", "9"])
    assert "base[/b]" in capsys.readouterr().out


# The line


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory.\n  Tried to allocate 2 GiB."),
            "out of memory: lower --micro-batch",
        ),
        (MemoryError(), "out of memory: lower --micro-batch"),
        (OSError(28, "No space left on device", "x"), "[Errno 28] No space left on device: 'x'"),
        (RuntimeError("one\n\n  two"), "one two (GFT_TRACEBACK=1 shows where)"),
        (ValueError(), "ValueError"),
    ],
)
def test_errors_of_input_are_one_line(error, words, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(run_command, "compare", fail)
    assert line("train", "--out", tmp_path / "run").startswith(words)


def test_faults_of_ours_keep_their_traceback(tmp_path, monkeypatch):
    for error in (KeyError("x"), AttributeError("x"), AssertionError("x"), ZeroDivisionError("x")):

        def fail(*args, error=error, **kwargs):
            raise error

        monkeypatch.setattr(run_command, "compare", fail)
        with pytest.raises(type(error)):
            train("--out", tmp_path / "run")


def test_gft_traceback_shows_where(tmp_path, monkeypatch):
    monkeypatch.setenv("GFT_TRACEBACK", "1")
    with pytest.raises(FileNotFoundError):
        train("--model", "m", "--data", "none.jsonl", "--out", tmp_path / "run")
    with pytest.raises(cli.OptionError):
        train("--model", "m", "--data", "none.jsonl", "--tau", "nan")


def test_typos_of_options_end_before_anything(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        train("--taw", "0.5")
    assert stop.value.code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "--taw" in said
    assert "--tau" in said
    assert os.listdir(tmp_path) == []


def test_demo_of_the_makefile_runs_again():
    makefile = Path(cli.__file__).parents[1] / "Makefile"
    assert "$(BIN)/gft train --overwrite\n" in makefile.read_text()
