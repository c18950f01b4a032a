"""gft sample: groups with a teacher's responses, the same bytes whatever interrupts it."""

from __future__ import annotations

import fcntl
import gc
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gft import cli, sample
from gft.data.files import load_examples
from gft.demo import sort_letters
from gft.demo.base_model import tokenizer, untrained
from gft.growing_file import GrowingFile

from .test_cli_errors import line

ROOT = Path(__file__).parents[2]
ROWS = 7
REWARD = "gft.demo.sort_letters:reward"


def checker(data_source: str, solution_str: str, ground_truth: str, extra_info: object = None) -> float:
    """A reward that fails where the response is long."""
    if len(solution_str) > 5:
        raise ValueError("too long to judge")
    return float(len(solution_str))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A teacher, and rows of two experts, one of them with a reward."""
    path = tmp_path_factory.mktemp("sample")
    untrained(0).save_pretrained(path / "teacher")
    tokenizer().save_pretrained(path / "teacher")
    rows = [
        {
            "prompt": e.prompt,
            "completions": [e.solution, "zzz"],
            "sources": ["expert", "teacher"],
            "rewards": [None, 0.25],
            "solution": e.solution,
            "data_source": "letters",
        }
        for e in sort_letters.examples(ROWS, seed=0)
    ]
    (path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def command(folder: Path, out: Path, *options: str) -> list[str]:
    """Three responses to each of two rows at once."""
    given = ["--model", str(folder / "teacher"), "--data", str(folder / "data.jsonl"), "--out", str(out)]
    sizes = ["--samples", "3", "--batch", "6", "--max-new-tokens", "12", "--device", "cpu", "--reward", REWARD]
    return ["sample", *given, *sizes, *options]


@pytest.fixture(scope="module")
def whole(folder):
    """The file of a run that nothing interrupted."""
    cli.main(command(folder, folder / "whole.jsonl"))
    return folder / "whole.jsonl"


def rows_of(path: Path) -> Iterator[dict]:
    return (json.loads(text) for text in path.read_text().splitlines())


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


@pytest.mark.parametrize("cut", [0, 1, 200, 2100, 3000, -1], ids=lambda cut: f"at byte {cut}")
def test_resume_writes_the_bytes_of_one_run(folder, whole, tmp_path, cut):
    """Whatever is left of the file: nothing, half a row, rows of half a batch, all but a byte."""
    out, before = tmp_path / "g.jsonl", whole.read_bytes()
    out.write_bytes(before[:cut])
    Path(f"{out}.run").write_bytes(Path(f"{whole}.run").read_bytes())
    cli.main(command(folder, out, "--resume"))
    assert out.read_bytes() == before


def test_resume_samples_nothing_again(folder, whole, tmp_path, monkeypatch, capsys):
    out, calls = tmp_path / "g.jsonl", []
    out.write_bytes(whole.read_bytes())
    Path(f"{out}.run").write_bytes(Path(f"{whole}.run").read_bytes())
    monkeypatch.setattr(sample, "draw", lambda *args: calls.append(args))
    cli.main(command(folder, out, "--resume"))
    assert not calls
    assert out.read_bytes() == whole.read_bytes()
    assert f"{ROWS} rows, 0 of them new" in capsys.readouterr().out


@pytest.mark.slow
def test_killed_run_goes_on(folder, whole, tmp_path):
    """SIGKILL in the middle of a row of the second batch."""
    script = f"""
import os, signal
from gft import cli
from gft.growing_file import GrowingFile
plain = GrowingFile.write
def write(self, rows):
    if self.done:
        self.file.write(b'{{"prompt": "half a r'); self.file.flush(); os.kill(os.getpid(), signal.SIGKILL)
    plain(self, rows)
GrowingFile.write = write
cli.main({command(folder, tmp_path / "g.jsonl")!r})
"""
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True).returncode == -signal.SIGKILL
    left = (tmp_path / "g.jsonl").read_bytes()
    assert left.count(b"\n") == 2
    assert left.endswith(b"half a r")
    cli.main(command(folder, tmp_path / "g.jsonl", "--resume"))
    assert (tmp_path / "g.jsonl").read_bytes() == whole.read_bytes()


def test_signal_ends_between_two_tokens_and_says_resumable(folder, whole, tmp_path, monkeypatch):
    plain, out = sample.draw, tmp_path / "g.jsonl"

    def draw(*args):
        if out.read_bytes():
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(*args)

    monkeypatch.setattr(sample, "draw", draw)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)}
    try:
        with pytest.raises(SystemExit) as ended:
            cli.main(command(folder, out))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert ended.value.code == 75
    monkeypatch.setattr(sample, "draw", plain)
    assert out.read_bytes().count(b"\n") == 2
    cli.main(command(folder, out, "--resume"))
    assert out.read_bytes() == whole.read_bytes()


def test_used_files_are_refused(folder, whole, tmp_path):
    out = tmp_path / "g.jsonl"
    out.write_text("mine\n")
    assert "is not empty: give another file, --resume to go on, or --overwrite" in line(*command(folder, out))
    assert "--resume needs" in line(*command(folder, out, "--resume"))
    assert out.read_text() == "mine\n"
    assert "give one of them" in line(*command(folder, out, "--resume", "--overwrite"))
    cli.main(command(folder, out, "--overwrite"))
    assert out.read_bytes() == whole.read_bytes()
    data = str(folder / "data.jsonl")
    assert "--out is the file of --data" in line(*command(folder, folder / "data.jsonl", "--data", data))
    assert "written as .jsonl" in line(*command(folder, tmp_path / "g.parquet"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--samples", "2"], "--samples is 2, and was 3 when"),
        (["--seed", "1"], "--seed is 1, and was 0 when"),
        (["--batch", "12"], "--batch is 12, and was 6 when"),
        (["--prompts", "6"], "--prompts is 6, and was None when"),
    ],
)
def test_resume_refuses_other_options(folder, whole, tmp_path, change, message):
    out = tmp_path / "g.jsonl"
    out.write_bytes(whole.read_bytes()[:200])
    Path(f"{out}.run").write_bytes(Path(f"{whole}.run").read_bytes())
    assert message in line(*command(folder, out, "--resume", *change))
    assert len(out.read_bytes()) == 200


def test_resume_refuses_other_data(folder, whole, tmp_path):
    out, data = tmp_path / "g.jsonl", tmp_path / "d.jsonl"
    out.write_bytes(whole.read_bytes()[:200])
    Path(f"{out}.run").write_bytes(Path(f"{whole}.run").read_bytes())
    data.write_text((folder / "data.jsonl").read_text().replace("zzz", "zzy", 1))
    assert "--data is " in line(*command(folder, out, "--resume", "--data", str(data)))


def test_two_runs_do_not_share_a_file(folder, tmp_path):
    out = tmp_path / "g.jsonl"
    with out.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "is in use: another run is writing it" in line(*command(folder, out))


def test_rows_without_a_solution_and_responses_without_room_are_refused(folder, tmp_path):
    data = tmp_path / "d.jsonl"
    data.write_text(json.dumps({"prompt": "ab=", "completion": "ab"}) + "\n")
    assert "1 of 1 rows have no solution" in line(*command(folder, tmp_path / "g.jsonl", "--data", str(data)))
    assert "--max-new-tokens is 64" in line(*command(folder, tmp_path / "g.jsonl", "--max-new-tokens", "64"))


def test_sample_takes_another_sampler(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(gc, "collect", lambda *generation: 0)  # most of the time of continuous batching
    cli.main(command(folder, tmp_path / "g.jsonl", "--sampler", "continuous"))
    assert sum(len(row["completions"]) - 2 for row in rows_of(tmp_path / "g.jsonl")) > ROWS


def test_a_full_disk_leaves_what_was_written(folder, whole, tmp_path, monkeypatch):
    plain, out = GrowingFile.write, tmp_path / "g.jsonl"

    def write(self, rows):
        if self.done:
            raise OSError(28, "No space left on device")
        plain(self, rows)

    monkeypatch.setattr(GrowingFile, "write", write)
    assert "No space left" in line(*command(folder, out))
    monkeypatch.setattr(GrowingFile, "write", plain)
    cli.main(command(folder, out, "--resume"))
    assert out.read_bytes() == whole.read_bytes()
