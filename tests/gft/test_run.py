"""Nothing that lies in a folder is overwritten unasked, and a refused run leaves no trace."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from gft.metrics import MetricsLog, read_metrics
from gft.runs.run import LOCK, run_folder
from gft.settings.config import EMBEDDED
from gft.settings.options import OptionError


def tree(folder):
    """Everything below a folder, with the contents of files."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def settings(out, **changes):
    return replace(EMBEDDED, out=out, **changes)


def refuse(config, words):
    """Enter the folder of a run that is refused in these words."""
    with pytest.raises(OptionError, match=words), run_folder(config, print):
        pytest.fail("the run began")


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "curves.png", "model/a", "checkpoint-5/a", "stopped/a", "thesis.tex"]
)
def test_run_folder_refuses_a_used_folder_and_says_what_lies_there(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    before = tree(tmp_path)
    shown = name.split("/")[0] + "/" * ("/" in name)
    refuse(settings(tmp_path), f"--out {tmp_path} holds {shown}: give another folder, or --overwrite")
    assert tree(tmp_path) == before


def test_run_folder_names_five_of_many(tmp_path):
    for i in range(8):
        (tmp_path / f"checkpoint-{i}").mkdir()
    refuse(settings(tmp_path), "holds checkpoint-0/, .*, checkpoint-4/ and 3 more: give")


def test_run_folder_with_overwrite_says_what_it_meets_and_touches_nothing(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("old")
    before, said = tree(tmp_path), []
    with run_folder(settings(tmp_path, overwrite=True), said.append):
        pass
    assert tree(tmp_path) == before
    assert said == [f"{tmp_path} holds metrics.jsonl: what this run writes is replaced, the rest stays"]


def test_run_folder_of_a_run_that_failed_before_it_wrote_is_gone_again(tmp_path):
    def fail():
        with run_folder(settings(tmp_path / "runs" / "new"), print):
            assert (tmp_path / "runs" / "new" / LOCK).exists()
            raise ValueError("no usable prompt")

    with pytest.raises(ValueError, match="no usable prompt"):
        fail()
    assert tree(tmp_path) == {}


def test_run_folder_keeps_what_the_run_wrote_and_drops_the_lock(tmp_path):
    with run_folder(settings(tmp_path / "runs" / "new"), print):
        (tmp_path / "runs" / "new" / "metrics.jsonl").write_text("row")
    assert tree(tmp_path / "runs") == {"new": None, "new/metrics.jsonl": b"row"}


def test_run_folder_refuses_what_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        refuse(settings(out), f"--out {out} (is no folder|cannot be written: Not a directory)")
        refuse(settings(out, overwrite=True), f"--out {out}")
    assert tree(tmp_path) == {"file": b"mine"}


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes everywhere")
def test_run_folder_refuses_what_it_may_not_write(tmp_path):
    tmp_path.chmod(0o500)
    refuse(settings(tmp_path / "new"), "cannot be written: Permission denied")


def test_run_folder_refuses_a_second_run_and_leaves_the_first_alone(tmp_path):
    with run_folder(settings(tmp_path), print):
        (tmp_path / "metrics.jsonl").write_text("row")
        for overwrite in (False, True):
            refuse(settings(tmp_path, overwrite=overwrite), f"--out {tmp_path} is in use: another run is writing there")
        assert {path.name for path in tmp_path.iterdir()} == {LOCK, "metrics.jsonl"}
    with run_folder(settings(tmp_path, overwrite=True), print):
        pass


def test_run_folder_takes_over_from_a_run_that_was_killed(tmp_path):
    """The system releases the lock of a dead process; the file that stays is no lock."""
    program = (
        "import os, sys; from dataclasses import replace; from pathlib import Path\n"
        "from gft.settings.config import EMBEDDED\n"
        "from gft.runs.run import run_folder\n"
        "with run_folder(replace(EMBEDDED, out=Path(sys.argv[1])), print): os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", program, str(tmp_path)]).returncode == -9
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]
    with run_folder(settings(tmp_path), print):
        pass
    assert tree(tmp_path) == {}


def test_run_folder_refuses_to_write_over_what_the_run_reads(tmp_path):
    model, data = tmp_path / "base" / "model", tmp_path / "base" / "train.jsonl"
    model.mkdir(parents=True)
    data.write_text("rows")
    (tmp_path / "link").symlink_to(model)
    given = {"model": model, "data": str(data), "overwrite": True}
    lies_in = "lies in --out .*, where the run writes"
    refuse(settings(model, **given), f"--model {model} {lies_in}")
    refuse(settings(tmp_path / "link", **given), f"--model {model} {lies_in}")
    refuse(settings(tmp_path / "base", **given), f"--model {model} {lies_in}")
    refuse(settings(model / "tuned", **given), f"--out {model / 'tuned'} lies in --model {model}")
    refuse(settings(tmp_path / "base", **given | {"model": tmp_path / "elsewhere"}), f"--data {data} {lies_in}")
    refuse(
        settings(tmp_path / "base", overwrite=True, model=tmp_path / "x", data="rg:a", eval_data=str(data)),
        f"--eval-data {data} {lies_in}",
    )
    with run_folder(settings(tmp_path / "base" / "runs", **given), print):  # beside the data is the usual place
        pass
    assert tree(tmp_path / "base") == {"model": None, "train.jsonl": b"rows"}


def test_metrics_log_keeps_an_older_file_until_it_is_opened(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"step": 1}\n')
    with MetricsLog(tmp_path / "m.jsonl"):
        pass
    assert read_metrics(tmp_path / "m.jsonl") == [{"step": 1}]
    with MetricsLog(tmp_path / "m.jsonl") as log:
        log.open()
        log.write({"step": 2})
    assert read_metrics(tmp_path / "m.jsonl") == [{"step": 2}]
