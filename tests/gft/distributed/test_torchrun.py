"""torchrun starts the command, and starts it again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gft.metrics import read_metrics

from ..faults.tiny import command, make_inputs

SECONDS = 240  # most of it imports, three times two of them


@pytest.mark.slow
def test_run_goes_on_by_itself_after_one_of_its_processes_was_killed(tmp_path):
    make_inputs(tmp_path)
    out = tmp_path / "out"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1"]
    arguments = command(tmp_path, out, "--resume", "--parallel", "fsdp")
    arguments[arguments.index("--steps") + 1] = "40"
    with open(tmp_path / "log", "w") as log:
        started = subprocess.Popen([*torchrun, "-m", "gft", *arguments], stdout=log, stderr=log, cwd=Path.cwd())
    deadline = time.monotonic() + SECONDS
    while steps_of(out) < 5:
        assert started.poll() is None, (tmp_path / "log").read_text()
        assert time.monotonic() < deadline, (tmp_path / "log").read_text()
        time.sleep(0.05)
    children = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    assert started.wait(SECONDS) == 0, (tmp_path / "log").read_text()
    text = (tmp_path / "log").read_text()
    assert "goes on after step" in text
    assert [row["step"] for row in read_metrics(out / "metrics.jsonl") if "loss" in row] == list(range(1, 41))
    assert (out / "model" / "model.safetensors").exists()


def steps_of(out: Path) -> int:
    path = out / "metrics.jsonl"
    return path.read_text().count('"loss"') if path.exists() else 0
