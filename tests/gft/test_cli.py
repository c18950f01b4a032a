"""The commands as a user types them, on a tiny local model."""

import csv
import json
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoModelForCausalLM

from gft import cli
from gft.demo import compare, sort_letters
from gft.metrics import read_metrics
from gft.runs.checkpoint import save_model

FAST = ["--steps", "2", "--prompts-per-step", "3", "--lr", "1e-3", "--max-new-tokens", "9", "--micro-batch", "8"]
REWARD = ["--reward", "gft.demo.sort_letters:reward"]
METHODS = ("SFT on experts", "SFT on the mix", "GFT", "GFT, given", "GRPO")


@pytest.fixture
def folder(policy, tmp_path):
    policy.tokenizer.chat_template = "{{ messages[0]['content'] }}"
    return save_model(policy, tmp_path / "base")


def group_rows(path, count=8):
    rows = [
        {
            "prompt": e.prompt,
            "completions": [r.text for r in e.responses],
            "sources": [r.source for r in e.responses],
            "solution": e.solution,
        }
        for e in sort_letters.examples(count, seed=0)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def verl_rows(path, count=8):
    rows = [
        {
            "data_source": "sort_letters",
            "prompt": [{"role": "user", "content": e.prompt}],
            "ability": "letters",
            "reward_model": {"style": "rule", "ground_truth": e.solution},
            "extra_info": {"answer": e.solution, "index": i},
        }
        for i, e in enumerate(sort_letters.examples(count, seed=0))
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def gft(*arguments):
    cli.main([str(a) for a in arguments])


def test_train_sft_then_gft_then_grpo_are_three_runs_of_one_command(folder, tmp_path):
    data = group_rows(tmp_path / "groups.jsonl")
    model = folder
    for objective in ("sft", "gft", "grpo"):
        gft(
            "train",
            "--model",
            model,
            "--data",
            data,
            "--objective",
            objective,
            "--out",
            tmp_path / objective,
            *FAST,
            *(REWARD if objective != "sft" else ()),
        )
        model = tmp_path / objective / "model"
        steps = [r for r in read_metrics(tmp_path / objective / "metrics.jsonl") if "loss" in r]
        assert len(steps) == 2
        assert (tmp_path / objective / "curves.png").stat().st_size > 10_000
    assert AutoModelForCausalLM.from_pretrained(model).num_parameters() > 0


def test_train_reads_verl_parquet_with_messages_and_holds_prompts_out(folder, tmp_path, capsys):
    data = verl_rows(tmp_path / "verl.parquet", count=20)
    options = ["--own", "3", "--eval-prompts", "2", "--eval-samples", "2", "--out", tmp_path / "run", *FAST, *REWARD]
    gft("train", f"--model={folder}", "--data", data, *options)
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [r["step"] for r in rows if "eval_greedy" in r] == [0, 2]
    assert all(r["reward_expert"] == 1.0 for r in rows if "loss" in r)
    assert "held-out at step 2" in capsys.readouterr().out


def test_eval_prints_greedy_and_sampled_accuracy(folder, tmp_path, capsys):
    data = group_rows(tmp_path / "groups.jsonl")
    gft("eval", "--model", folder, "--data", data, "--samples", "2", "--max-new-tokens", "9", *REWARD)
    out = capsys.readouterr().out
    assert "greedy" in out
    assert "mean@2" in out


def test_train_without_options_compares_and_draws(tmp_path, monkeypatch, capsys):
    """The demo, shortened: the order of the methods, the table, the figure, the rows."""
    monkeypatch.setattr(compare.base_model, "PRETRAIN_STEPS", 3)
    gft("train", "--steps", "2", "--out", tmp_path, "--eval-prompts", "4", "--eval-samples", "2", "--eval-every", "1")
    out = capsys.readouterr().out
    assert [name for name in ("base", *compare.METHODS) if name in out] == ["base", *compare.METHODS]
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert [row["method"] for row in rows] == ["base", *compare.METHODS] == ["base", *METHODS]
    assert [row["sequences_per_update"] for row in rows] == ["0", "16", "64", "128", "128", "128"]
    assert [row["own_per_update"] for row in rows] == ["0", "0", "0", "64", "64", "128"]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "gft" / "model").num_parameters() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--model", "nowhere", "--data", "x.jsonl"), "x.jsonl: there is no such file"),
        (("--model", "nowhere"), "give --model and --data together"),
        (("--objective", "gft", "--experts", "0", "--teachers", "0", "--own", "0"), "0 expert"),
    ],
)
def test_train_ends_with_one_line_on_bad_input(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compare.base_model, "PRETRAIN_STEPS", 1)
    with pytest.raises(SystemExit) as stop:
        gft("train", *options, "--out", tmp_path)
    assert str(stop.value.code).startswith("gft: ")
    assert message in str(stop.value.code)


def test_train_interrupted_keeps_the_last_whole_update(folder, tmp_path, monkeypatch):
    from gft import train as loop

    original, calls = loop.train_step, []

    def third_is_interrupted(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(loop, "train_step", third_is_interrupted)
    data = group_rows(tmp_path / "groups.jsonl")
    with pytest.raises(SystemExit) as stop:
        gft(
            "train",
            "--model",
            folder,
            "--data",
            data,
            "--objective",
            "sft",
            "--out",
            tmp_path / "run",
            *FAST,
            "--steps",
            "5",
        )
    assert stop.value.code == 130
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "checkpoint-2" / "model").num_parameters() > 0


def test_train_finds_a_reward_beside_the_users_data(folder, tmp_path, monkeypatch):
    (tmp_path / "beside.py").write_text(
        "def half(data_source, solution_str, ground_truth, extra_info=None):\n    return 0.5\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    gft(
        "train",
        "--model",
        folder,
        "--data",
        group_rows(tmp_path / "g.jsonl"),
        "--reward",
        "beside:half",
        "--out",
        tmp_path / "run",
        *FAST,
    )
    assert all(r["reward"] == 0.5 and r["flat_groups"] == 1.0 for r in read_metrics(tmp_path / "run" / "metrics.jsonl"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--own", "2"), "the comparison has groups"),
        (("--eval-prompts", "0"), "the comparison has groups"),
        (("--device", "cuda"), "need --model"),
        (("--objective", "gft", "--eval-data", "x.jsonl"), "need --model"),
        (("--objective", "gft", "--dtype", "bfloat16"), "need --model"),
    ],
)
def test_train_refuses_options_the_embedded_task_cannot_honour(options, message, tmp_path):
    with pytest.raises(SystemExit, match=message):
        gft("train", *options, "--out", tmp_path)


def test_train_reads_gsm8k_and_scores_it_by_number(folder, tmp_path):
    """The default reward reads GSM8K's experts: they end in `#### N`, and score 1."""
    rows = [{"question": f"{'ab' * (i + 1)}", "answer": f"{'c' * i}\n#### {i}"} for i in range(6)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "gsm8k.parquet")
    options = ["--own", "2", "--max-prompt-tokens", "400", "--out", tmp_path / "run", *FAST]
    gft("train", "--model", folder, "--data", tmp_path / "gsm8k.parquet", *options)
    steps = [r for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in r]
    assert [r["reward_errors"] for r in steps] == [0, 0]
    assert [r["reward_expert"] for r in steps] == [1.0, 1.0]
