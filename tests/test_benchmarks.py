"""The benchmark runner: a wrong provider is never timed, and the GPU entry point runs without one."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks import gpu, providers, runner
from benchmarks.breakdown import PARTS, kernel_times
from benchmarks.cases import INTERPRETER_CASES, TINY_CASES, make_batch

ROOT = Path(__file__).parent.parent


def test_a_wrong_gradient_nan_and_a_crash_leave_a_row_with_the_reason_and_no_time(monkeypatch):
    def broken(batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    wrong = {"one per cent off": lambda batch: 1.01 * providers.eager(batch), "nan": lambda batch: torch.nan * providers.eager(batch)}
    for name, provider in (wrong | {"broken": broken}).items():
        monkeypatch.setitem(providers.PROVIDERS, name, provider)
    monkeypatch.setattr(runner, "peak_mib", lambda *_: 0.0)
    rows = {
        row["provider"]: row for row in runner.run_case(TINY_CASES[1], 1, names=("bare-gemms", "eager", "gft-chunked", *wrong, "broken"))
    }
    assert "gradient error dh 1.0e-02" in rows["one per cent off"]["note"]
    assert "gradient error dh nan" in rows["nan"]["note"]
    assert rows["broken"]["note"] == "OutOfMemoryError: CUDA out of memory"
    assert not any("ms" in rows[name] for name in (*wrong, "broken"))
    assert all(float(rows[name]["ms"]) > 0 for name in ("bare-gemms", "eager", "gft-chunked"))
    assert "note" not in rows["eager"]
    assert "no gate" in rows["bare-gemms"]["note"]


def test_a_provider_that_fails_while_it_is_timed_is_left_out(monkeypatch):
    calls = iter(range(100))

    def failing(batch):
        if next(calls):  # the gate passes
            raise RuntimeError("an illegal memory access")
        return providers.eager(batch)

    monkeypatch.setitem(providers.PROVIDERS, "failing", failing)
    monkeypatch.setattr(runner, "peak_mib", lambda *_: 0.0)
    rows = runner.run_case(TINY_CASES[0], 2, names=("failing", "eager"))
    assert rows[0]["note"] == "RuntimeError: an illegal memory access"
    assert "ms" not in rows[0]
    assert rows[1]["ratio_to_eager"] == "1.00"


def test_kernel_times_add_up_to_the_step():
    case = INTERPRETER_CASES[0]
    batch = make_batch(case)
    found = kernel_times(lambda: runner.step("gft-triton", batch), cuda=False, rounds=1)
    assert set(found) == {*PARTS, "rest"}
    assert all(ms > 0 for ms in found.values())


def test_git_commit_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert runner.git_commit() == "unknown"
    monkeypatch.setenv("GFT_COMMIT", "abc1234")
    assert runner.git_commit() == "abc1234"


def test_make_batch_has_the_masked_and_flat_shares_it_names():
    batch = make_batch(TINY_CASES[1])
    masked = (batch.targets == -100).float().mean().item()
    assert abs(masked - 0.30) < 0.02
    assert (batch.advantages == 0).float().mean().item() == 0.25


def table(folder: Path) -> list[dict]:
    with (folder / "dry-run.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_gpu_dry_run_appends_complete_rows(tmp_path):
    chosen = ["bare-gemms", "eager", "gft-triton"]
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry-run", "--tests", "all_masked", "--providers", *chosen]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "OUT": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    rows = table(tmp_path)
    assert [row["provider"] for row in rows] == chosen
    optional = {"dh_error", "dw_error", "kernels", "note"}
    assert all(row[field] for row in rows for field in runner.FIELDS if field not in optional)
    assert all(f"{part}=" in rows[2]["kernels"] for part in PARTS)
    assert not rows[2]["note"]


def test_gpu_time_limit_leaves_a_row_and_stages_can_be_skipped(tmp_path, monkeypatch):
    monkeypatch.setenv("OUT", str(tmp_path))
    assert gpu.main(["--dry-run", "--skip-tests", "--minutes", "0.01"]) == 1
    assert [(row["provider"], row["note"]) for row in table(tmp_path)] == [("all", "no time was left")]
    assert gpu.main(["--dry-run", "--skip-tests", "--cases"]) == 0
    assert len(table(tmp_path)) == 1


def test_gpu_stage_that_crashes_or_hangs_is_named():
    assert gpu.run(["no_such_module"], 60, dry_run=True) == "ended with 1"
    assert gpu.run(["timeit", "-n1", "-r1", "import time; time.sleep(60)"], 1, dry_run=True) == "stopped after 1 s"


def test_csv_headers_are_those_of_the_runner():
    for name in ("cpu.csv", "gpu.csv"):
        path = ROOT / "benchmarks" / "results" / name
        if path.exists():
            with path.open(newline="") as file:
                assert tuple(next(csv.reader(file))) == runner.FIELDS
