"""gft train --resume as a user types it: what it takes from the run, refuses, and begins."""

import json
import shutil
import signal
from dataclasses import replace

import pytest

from gft import cli
from gft.checkpoint import newest_whole
from gft.commands import train as run_command
from gft.data.files import load_examples
from gft.record import data_hash, flat, from_json, read_record
from gft.stop import Stopped

from .faults.tiny import command, make_inputs, outcome
from .test_cli_errors import line


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("inputs")
    make_inputs(path)
    return path


@pytest.fixture(scope="module")
def finished(folder):
    """A run that has ended."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_command, "run_figure", lambda rows, path: path)
        cli.main(command(folder, folder / "run"))
    return folder / "run"


@pytest.fixture
def run(finished, tmp_path):
    """A copy of it, which a test may spoil."""
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    monkeypatch.setattr(run_command, "run_figure", lambda rows, path: path)


def resume(out, *options):
    cli.main(["train", "--resume", "--out", str(out), *options])


def test_run_json_says_what_the_run_is(run, folder):
    record = json.loads((run / "run.json").read_text())
    assert {"run", "seed", "data", "held_out", "made_with", "config"} == record.keys()
    assert {"torch", "transformers", "python", "gft-kernels", "commit", "device", "threads", "processes"} == record[
        "made_with"
    ].keys()
    assert record["config"]["model"] == str(folder / "base")
    config = read_record(run)["config"]
    assert dict(flat(config))["optim.lr"] == 0.01
    assert from_json(record["config"]) == config


def test_resume_of_the_whole_command_and_of_a_finished_run_changes_nothing(run, folder):
    before = outcome(run)
    cli.main(command(folder, run, "--resume"))
    resume(run)
    assert outcome(run) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--lr", "0.02"], "--lr is 0.02, and 0.01 in the run that --resume goes on with"),
        (["--steps", "9"], "--steps is 9, and 5 in the run"),
        (["--own", "3"], "--own is 3, and 2 in the run"),
        (["--seed", "1"], "--seed is 1, and 0 in the run"),
        (["--objective", "grpo", "--experts", "1"], "--objective is grpo, and gft in the run"),
        (["--overwrite"], "--resume goes on with what --overwrite replaces: give one of them."),
    ],
)
def test_resume_refuses_another_option_by_name(options, words, run):
    before = outcome(run)
    assert words in line("train", "--resume", "--out", run, *options)
    assert outcome(run) == before


def test_resume_takes_options_that_change_no_number(run):
    for path in run.glob("checkpoint-*"):
        shutil.rmtree(path)
    resume(run, "--save-every", "1", "--keep", "0")  # it begins again
    assert {path.name for path in run.glob("checkpoint-*")} == {f"checkpoint-{step}" for step in range(1, 6)}


def test_resume_refuses_other_rows(run, folder, tmp_path):
    """A row of the held-out file that has changed, and one of the training data."""
    for name, named in (("held-out", "--eval-data"), ("train", "--data")):
        path = folder / f"{name}.jsonl"
        text = path.read_text()
        path.write_text(text.replace('"solution": "', '"solution": "z', 1))
        try:
            assert f"{named} has changed since the run in {run} began" in line("train", "--resume", "--out", run)
        finally:
            path.write_text(text)


def test_data_hash_is_of_the_rows_and_not_of_their_file(folder):

    examples = load_examples(folder / "train.jsonl")
    assert data_hash(examples) == data_hash([replace(e, origin="elsewhere:1") for e in examples])
    assert data_hash(examples) != data_hash(examples[::-1])
    assert data_hash(examples) != data_hash([replace(examples[0], solution=""), *examples[1:]])


def test_resume_tells_of_other_versions(run, capsys):
    record = json.loads((run / "run.json").read_text())
    record["made_with"]["torch"] = "1.0"
    (run / "run.json").write_text(json.dumps(record))
    resume(run)
    assert "was 1.0 when the run began: what follows may differ in the last bits" in capsys.readouterr().out


def test_resume_in_an_empty_folder_begins_the_run(folder, tmp_path, finished, capsys):
    cli.main(command(folder, tmp_path / "new", "--resume"))
    assert f"{tmp_path / 'new'} holds no run: a new one begins" in capsys.readouterr().out
    assert outcome(tmp_path / "new") == outcome(finished)


def test_resume_without_a_run_is_refused(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "--resume finds no run in" in line("train", "--resume")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "a.tex").write_text("mine")
    said = line(*command(folder, tmp_path / "thesis", "--resume"))
    assert "holds a.tex, and no run.json: there is no run to resume" in said


@pytest.mark.parametrize("text", ["{", "[]", '{"run": "a"}', '{"config": {"steps": "many"}}'])
def test_resume_of_a_run_json_that_cannot_be_read_is_refused(text, run):
    (run / "run.json").write_text(text)
    assert "run.json is not what this version writes" in line("train", "--resume", "--out", run)


def test_resume_goes_on_where_the_run_was_moved_to(run, tmp_path):
    moved = run.rename(tmp_path / "moved")
    shutil.rmtree(moved / "checkpoint-5")
    shutil.rmtree(moved / "model")
    before = (moved / "metrics.jsonl").read_text().splitlines()
    resume(moved)
    assert len((moved / "metrics.jsonl").read_text().splitlines()) == len(before)
    assert (moved / "model" / "model.safetensors").exists()


def test_resume_cuts_off_what_was_written_after_the_checkpoint(run, finished):
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "los')
    shutil.rmtree(run / "checkpoint-5")
    resume(run)
    assert outcome(run) == outcome(finished)


def test_model_shares_the_files_of_the_last_checkpoint(run, finished):
    first, second = (finished / part / "model.safetensors" for part in ("model", "checkpoint-5/model"))
    assert first.samefile(second)


def test_an_error_after_the_last_step_loses_nothing(folder, finished, tmp_path, monkeypatch):
    def fail(row, state, config, *_):
        if state.step == config.steps:
            raise RuntimeError("too many rewards failed")

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("gft.train.watch", fail)
        with pytest.raises(SystemExit):
            cli.main(command(folder, out))
    assert (out / "checkpoint-5").is_dir()
    resume(out)
    assert outcome(out) == outcome(finished)


def test_a_run_that_was_killed_before_it_had_a_name_begins(folder, finished, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / ".run.json.saving").write_text("{")
    cli.main(command(folder, out, "--resume"))
    assert outcome(out) == outcome(finished)


def test_a_first_save_that_was_killed_is_no_damaged_checkpoint(run):
    newest = run / "checkpoint-5"
    (newest / "state.json").write_text("{")
    for path in run.glob("checkpoint-*"):
        path.rename(run / ".checkpoint-5.saving") if path == newest else shutil.rmtree(path)
    assert newest_whole(run, read_record(run)["run"], pytest.fail) is None
    assert not list(run.glob(".checkpoint-*"))  # its room is the next save's


@pytest.mark.parametrize(("options", "code"), [(["--resume"], 75), (["--overwrite"], 143)])
def test_signal_before_the_loop_is_resumable_if_the_run_is(options, code, run, folder, monkeypatch):
    def stopped(*_):
        raise Stopped(signal.SIGTERM, False)

    monkeypatch.setattr(run_command, "_materials", stopped)
    with pytest.raises(SystemExit) as ended:
        cli.main(command(folder, run, *options))
    assert ended.value.code == code
