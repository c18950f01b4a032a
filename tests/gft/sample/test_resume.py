"""gft sample writes the same bytes whatever interrupts it, and goes on with its own file alone."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import gft
from gft import cli, sample
from gft.growing_file import GrowingFile

from ..test_cli_errors import line
from .commands import ROWS, command

ROOT = Path(gft.__file__).parents[1]


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
        (["--reward-seconds", "9"], "--reward-seconds is 9.0, and was 5.0 when"),
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
