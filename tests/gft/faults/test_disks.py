"""Full disks and damaged files: what was valid stays valid, and is found again.

Limits on the size of files are the system's own (RLIMIT_FSIZE). Full disks are small file systems
in memory where the tests may mount them; elsewhere these tests are skipped.
"""

from __future__ import annotations

import errno
import json
import re
import resource
import subprocess
from contextlib import contextmanager
from signal import SIGKILL, SIGTERM

import pytest

from gft.metrics import MetricsLog
from gft.record import read_record

from .harness import send, trap
from .tiny import STEPS, go_on, outcome, start, steps_saved


def limit_files(size):
    """No file of this process may become larger; writes fail as on a full disk."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))


def unlimited():
    limit_files(resource.RLIM_INFINITY)


@contextmanager
def small_disk(path, size):
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], capture_output=True)
    if mounted.returncode:
        pytest.skip("may not mount a file system")
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


def test_save_that_fails_is_told_and_tried_again(folder, whole, tmp_path):
    """No room after step 2, room again after step 3, of which a checkpoint stands then."""

    def prepare():
        trap("gft.keeper.Keeper._save", 1, lambda: limit_files(20_000))
        trap("gft.keeper.Keeper._save", 2, unlimited)
        trap("gft.train.make_batch", 4, send(SIGKILL))

    ended = start(folder, tmp_path / "out", prepare)
    assert ended.code == -9
    assert "no checkpoint of step 2, it is tried again after the next: " in ended.output
    assert "Too large" in ended.output or "too large" in ended.output
    assert steps_saved(tmp_path / "out") == [3]
    assert go_on(folder, tmp_path / "out").code == 0
    assert outcome(tmp_path / "out") == whole


@pytest.mark.slow
def test_save_of_the_last_step_that_fails_leaves_the_one_before(folder, whole, tmp_path):
    ended = start(folder, tmp_path / "out", lambda: trap("gft.keeper.Keeper._save", 3, lambda: limit_files(20_000)))
    assert ended.code == 1
    (line,) = [line for line in ended.output.splitlines() if line.startswith("gft: ")]
    assert "cannot be written" in line
    assert steps_saved(tmp_path / "out") == [4, 2]
    assert go_on(folder, tmp_path / "out").code == 0
    assert outcome(tmp_path / "out") == whole


def test_last_save_without_room_for_the_optimiser_leaves_the_weights(folder, whole, tmp_path):
    def fail():
        raise OSError(errno.ENOSPC, "No space left on device")

    ended = start(folder, tmp_path / "out", lambda: trap("gft.moments.save_file", 3, fail))
    assert ended.code == 1
    assert f"the weights alone: {tmp_path / 'out' / 'model'}" in ended.output
    assert outcome(tmp_path / "out")[1] == whole[1]
    assert go_on(folder, tmp_path / "out").code == 0
    assert outcome(tmp_path / "out") == whole


def test_metrics_that_do_not_fit_wait(folder, whole, tmp_path):
    """Half a line fits; it and the next ones are there in the end."""

    def prepare():
        trap("gft.metrics.MetricsLog.write", 2, lambda: limit_files(150))
        trap("gft.metrics.MetricsLog.write", 3, unlimited)

    ended = start(folder, tmp_path / "out", prepare)
    assert ended.code == 0, ended.output
    assert outcome(tmp_path / "out") == whole


@pytest.mark.slow
def test_metrics_that_never_fit_end_the_run_and_are_written_when_it_goes_on(folder, whole, tmp_path):
    ended = start(folder, tmp_path / "out", lambda: trap("gft.metrics.MetricsLog.write", 2, lambda: limit_files(150)))
    assert ended.code == 1  # the log of this process does not fit either
    assert go_on(folder, tmp_path / "out").code == 0
    assert outcome(tmp_path / "out") == whole


def test_no_checkpoint_counts_rows_that_are_not_on_the_disk(folder, whole, tmp_path):
    """Rows cannot be written from the second step on, checkpoints could."""

    def fail(log):
        raise OSError(errno.ENOSPC, "No space left on device")

    def prepare():
        trap("gft.train.make_batch", 2, lambda: setattr(MetricsLog, "_write", fail))
        trap("gft.train.make_batch", STEPS, send(SIGKILL))

    ended = start(folder, tmp_path / "out", prepare)
    assert ended.code == -9, ended.output
    assert "no checkpoint of step 2" in ended.output
    assert steps_saved(tmp_path / "out") == []
    assert go_on(folder, tmp_path / "out").code == 0
    assert outcome(tmp_path / "out") == whole


@pytest.mark.slow
def test_signal_on_a_full_disk_still_ends_the_run(folder, whole, tmp_path):
    def full():
        limit_files(20_000)
        send(SIGTERM)()

    ended = start(folder, tmp_path / "out", lambda: trap("gft.train.make_batch", 4, full))
    assert ended.code == 75
    assert "no checkpoint of step 3: " in ended.output
    assert steps_saved(tmp_path / "out") == [2]
    assert go_on(folder, tmp_path / "out").code == 0
    assert outcome(tmp_path / "out") == whole


def test_disk_that_is_full_for_a_while(folder, whole, tmp_path):
    """A file fills a disk of 1 MiB from the first save on, and goes before the last one."""
    with small_disk(tmp_path / "disk", "1m") as disk:
        ballast = disk / "ballast"

        def fill():
            with ballast.open("wb") as file:
                while True:
                    try:
                        file.write(bytes(4096))
                        file.flush()
                    except OSError:
                        return

        def prepare():
            trap("gft.keeper.Keeper._save", 1, fill)
            trap("gft.keeper.Keeper._save", 4, ballast.unlink)

        ended = start(folder, disk / "out", prepare)
        assert ended.code == 0, ended.output
        assert "no checkpoint of step 2, it is tried again after the next: " in ended.output
        assert outcome(disk / "out") == whole


def test_disk_without_room_for_two_checkpoints_is_refused(folder, tmp_path):
    with small_disk(tmp_path / "disk", "100k") as disk:
        ended = start(folder, disk / "out", lambda: None)
        assert ended.code == 1
        assert "the run needs room for 3 checkpoints of " in ended.output
        assert list(disk.iterdir()) == []


# Damage


@pytest.fixture
def interrupted(folder, tmp_path):
    """A run that was killed in its last step, with checkpoints of the steps 2 and 4."""
    out = tmp_path / "out"
    ended = start(folder, out, lambda: trap("gft.train.make_batch", STEPS, send(SIGKILL)))
    assert ended.code == -9, ended.output
    assert steps_saved(out) == [4, 2]
    return out


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("file", "harm", "words"),
    [
        ("model/model.safetensors", truncate, "model.safetensors has .* bytes of "),
        ("optimizer.safetensors", flip, "optimizer.safetensors has changed"),
        ("state.json", lambda path: path.unlink(), "state.json: No such file"),
        ("manifest.json", truncate, "manifest.json cannot be read"),
    ],
)
def test_damaged_checkpoint_is_named_and_the_one_before_is_used(file, harm, words, interrupted, folder, whole):
    harm(interrupted / "checkpoint-4" / file)
    resumed = go_on(folder, interrupted)
    assert resumed.code == 0, resumed.output
    assert re.search(rf"checkpoint-4 is damaged \(.*{words}", resumed.output)
    assert outcome(interrupted) == whole


@pytest.mark.slow
def test_run_whose_checkpoints_are_all_damaged_does_not_begin_again(interrupted, folder):
    for step in (2, 4):
        flip(interrupted / f"checkpoint-{step}" / "state.json")
    rows = (interrupted / "metrics.jsonl").read_bytes()
    resumed = go_on(folder, interrupted)
    assert resumed.code == 1
    assert "every checkpoint is damaged (checkpoint-4, checkpoint-2)" in resumed.output
    assert (interrupted / "metrics.jsonl").read_bytes() == rows


def test_checkpoints_of_a_run_that_was_overwritten_are_not_this_runs(interrupted, folder, whole):
    """They stay, but a run that is killed before its first save begins again."""
    before = read_record(interrupted)["run"]
    ended = start(folder, interrupted, lambda: trap("gft.train.make_batch", 2, send(SIGKILL)), "--overwrite")
    assert ended.code == -9
    assert read_record(interrupted)["run"] != before
    assert steps_saved(interrupted) == []
    assert json.loads((interrupted / "checkpoint-4" / "manifest.json").read_text())["run"] == before
    assert go_on(folder, interrupted).code == 0
    assert outcome(interrupted) == whole
