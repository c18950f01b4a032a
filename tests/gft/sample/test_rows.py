"""gft sample: groups with a teacher's responses, scored, that train reads."""

from __future__ import annotations

import gc
import json
import re

from gft import cli
from gft.data.files import load_examples
from gft.demo import sort_letters

from ..test_cli_errors import line
from .commands import REWARD, ROWS, command, rows_of


def checker(data_source: str, solution_str: str, ground_truth: str, extra_info: object = None) -> float:
    """A reward that fails where the response is long."""
    if len(solution_str) > 5:
        raise ValueError("too long to judge")
    return float(len(solution_str))


def test_sample_keeps_the_given_responses_and_appends_scored_ones(folder, whole):
    given = list(rows_of(folder / "data.jsonl"))
    found = list(rows_of(whole))
    assert len(found) == ROWS
    for row, before in zip(found, given, strict=True):
        new = len(row["completions"]) - 2
        assert 0 <= new <= 3
        for name in ("completions", "sources", "rewards"):
            assert row[name][:2] == before[name]
        assert row["sources"][2:] == ["teacher"] * new
        expected = [sort_letters.reward("", text, row["solution"]) for text in row["completions"][2:]]
        assert row["rewards"][2:] == expected
        assert {name: row[name] for name in ("prompt", "solution", "data_source")} == {
            name: before[name] for name in ("prompt", "solution", "data_source")
        }
    responses = [text for row in found for text in row["completions"][2:]]
    assert len(set(responses)) == len(responses) > ROWS  # no batch of rows has the seed of another


def test_sample_writes_what_train_reads(folder, whole, tmp_path):
    examples = load_examples(whole)
    assert [len(e.responses) for e in examples] == [len(row["completions"]) for row in rows_of(whole)]
    sizes = ["--steps", "1", "--prompts-per-step", "2", "--max-new-tokens", "4", "--teachers", "2", "--own", "1"]
    given = ["--model", str(folder / "teacher"), "--data", str(whole), "--reward", REWARD, "--device", "cpu"]
    cli.main(["train", *given, *sizes, "--objective", "gft", "--out", str(tmp_path / "run")])
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert row["sequences"] > 2 * 2


def test_sample_tells_what_became_of_the_responses(folder, whole, tmp_path, capsys):
    cli.main(command(folder, tmp_path / "g.jsonl"))
    out = capsys.readouterr().out
    new = sum(len(row["completions"]) - 2 for row in rows_of(whole))
    assert f"{ROWS} rows, {ROWS} of them new, with {new} responses" in out
    assert f"{3 * ROWS - new} responses were cut at 12 tokens and dropped" in out
    assert "mean reward of the new responses: 0.000" in out


def test_sample_can_keep_truncated_responses_and_call_them_experts(folder, whole, tmp_path):
    cli.main(command(folder, tmp_path / "g.jsonl", "--keep-truncated", "--source", "expert"))
    for row, short in zip(rows_of(tmp_path / "g.jsonl"), rows_of(whole), strict=True):
        assert row["sources"] == ["expert", "teacher", "expert", "expert", "expert"]
        assert [t for t in row["completions"] if t in short["completions"]] == short["completions"]


def test_sample_leaves_scoring_to_training_if_told_so(folder, whole, tmp_path):
    cli.main(command(folder, tmp_path / "g.jsonl", "--reward", "none"))
    for row, scored in zip(rows_of(tmp_path / "g.jsonl"), rows_of(whole), strict=True):
        assert row["completions"] == scored["completions"]
        assert row["rewards"] == [None, 0.25] + [None] * (len(row["completions"]) - 2)


def test_sample_gives_no_reward_where_the_checker_fails(folder, whole, tmp_path, capsys):
    cli.main(command(folder, tmp_path / "g.jsonl", "--reward", f"{__name__}:checker"))
    failed = 0
    for row in rows_of(tmp_path / "g.jsonl"):
        for text, reward in zip(row["completions"][2:], row["rewards"][2:], strict=True):
            assert reward == (None if len(text) > 5 else len(text))
            failed += reward is None
    assert failed > 3
    assert re.search(rf"{failed} responses could not be scored .* too long to judge", capsys.readouterr().out)


def test_sample_writes_the_suffix_of_prompts(folder, tmp_path):
    """Once: training with the same one puts it there no second time."""
    cli.main(
        command(folder, tmp_path / "g.jsonl", "--prompt-suffix", "qq", "--prompts", "2", "--max-prompt-tokens", "30")
    )
    given = list(rows_of(folder / "data.jsonl"))[:2]
    assert [row["prompt"] for row in rows_of(tmp_path / "g.jsonl")] == [f"{row['prompt']}\n\nqq" for row in given]
    examples = load_examples(tmp_path / "g.jsonl", prompt_suffix="qq")
    assert [e.prompt for e in examples] == [f"{row['prompt']}\n\nqq" for row in given]


def test_sample_leaves_rows_without_room_as_they_are(folder, tmp_path, capsys):
    """Prompts of the task have 9 tokens; a row that is added has 3."""
    data = tmp_path / "d.jsonl"
    row = {"prompt": "ab=", "completions": [], "solution": "ab"}
    data.write_text((folder / "data.jsonl").read_text() + json.dumps(row) + "\n")
    cli.main(command(folder, tmp_path / "g.jsonl", "--data", str(data), "--max-prompt-tokens", "8"))
    *rows, last = rows_of(tmp_path / "g.jsonl")
    assert [row["completions"] for row in rows] == [row["completions"] for row in rows_of(folder / "data.jsonl")]
    assert last["completions"]
    assert f"{ROWS} rows have no responses: the prompt is empty" in capsys.readouterr().out


def test_rows_without_a_solution_and_responses_without_room_are_refused(folder, tmp_path):
    data = tmp_path / "d.jsonl"
    data.write_text(json.dumps({"prompt": "ab=", "completion": "ab"}) + "\n")
    assert "1 of 1 rows have no solution" in line(*command(folder, tmp_path / "g.jsonl", "--data", str(data)))
    assert "--max-new-tokens is 64" in line(*command(folder, tmp_path / "g.jsonl", "--max-new-tokens", "64"))


def test_sample_takes_another_sampler(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(gc, "collect", lambda *generation: 0)  # most of the time of continuous batching
    cli.main(command(folder, tmp_path / "g.jsonl", "--sampler", "continuous"))
    assert sum(len(row["completions"]) - 2 for row in rows_of(tmp_path / "g.jsonl")) > ROWS
