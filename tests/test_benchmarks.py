"""The benchmark runner: a wrong provider is never timed, and the GPU entry point runs without one."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks import providers, runner
from benchmarks.cases import TINY_CASES, make_batch

ROOT = Path(__file__).parent.parent


def test_passing_excludes_a_wrong_gradient_and_nan(monkeypatch, capsys):
    case = TINY_CASES[1]
    monkeypatch.setitem(providers.PROVIDERS, "one per cent off", lambda batch: 1.01 * providers.eager(batch))
    monkeypatch.setitem(providers.PROVIDERS, "nan", lambda batch: torch.nan * providers.eager(batch))
    assert {"eager", "gft-chunked"} <= runner.passing(case, make_batch(case)).keys() <= {"eager", "gft-chunked", "torch-linear-ce"}
    printed = capsys.readouterr().out
    assert "one per cent off excluded, gradient error dh 1.0e-02" in printed
    assert "nan excluded, gradient error dh nan" in printed


def test_make_batch_has_the_masked_and_flat_shares_it_names():
    batch = make_batch(TINY_CASES[1])
    masked = (batch.targets == -100).float().mean().item()
    assert abs(masked - 0.30) < 0.02
    assert (batch.advantages == 0).float().mean().item() == 0.25


def test_gpu_dry_run_appends_complete_rows(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry-run"]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "OUT": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    with (tmp_path / "dry-run.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["case"] for row in rows} == {case.name for case in TINY_CASES}
    assert all(row[field] for row in rows for field in runner.FIELDS)
