"""The benchmark runner: a wrong provider is never timed; the GPU entry point runs on a CPU."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, record
from benchmarks.heads import ours
from benchmarks.inputs.cases import HEADS, INTERPRETER_CASES, SETS, TINY_CASES, Case, make_batch
from benchmarks.timing import runner
from benchmarks.timing.breakdown import PARTS, kernel_times
from benchmarks.timing.gate import step
from benchmarks.timing.memory import peak_mib

ROOT = Path(__file__).parents[2]


@pytest.fixture
def quick(monkeypatch):
    """Peak memory is not weighed, and further providers can be added."""
    monkeypatch.setattr(runner, "peak_mib", lambda *_: dict.fromkeys(runner.MODES, 0.0))
    known = dict(ours.providers())
    monkeypatch.setattr(ours, "providers", lambda: known)
    return known


def test_a_wrong_gradient_nan_and_a_crash_leave_a_row_with_the_reason_and_no_time(quick):
    def broken(batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    quick["one per cent off"] = lambda batch: 1.01 * ours.eager(batch)
    quick["wrong loss"] = lambda batch: ours.eager(batch) + 1
    quick["nan"] = lambda batch: torch.nan * ours.eager(batch)
    quick["broken"] = broken
    rows = runner.run_case(TINY_CASES[1], 1, "cpu", ["bare-gemms", "eager", "gft-chunked", *list(quick)[-4:]])
    by_name = {row["provider"]: row for row in rows}
    assert "dh_error 1.0e-02" in by_name["one per cent off"]["note"]
    assert "over 1e-03" in by_name["wrong loss"]["note"]
    assert "dh_error nan" in by_name["nan"]["note"]
    assert by_name["broken"]["note"] == "OutOfMemoryError: CUDA out of memory"
    timed = [row for row in rows if "ms" in row]
    assert [(row["provider"], row["mode"]) for row in timed] == [
        (name, mode) for name in ("bare-gemms", "eager", "gft-chunked") for mode in runner.MODES
    ]
    assert all(float(row["ms"]) > 0 for row in timed)
    assert not by_name["eager"]["note"]
    assert "no gate" in by_name["bare-gemms"]["note"]


def test_a_provider_that_fails_while_it_is_timed_is_left_out(quick):
    calls = iter(range(100))

    def failing(batch):
        if next(calls):  # the gate passes
            raise RuntimeError("an illegal memory access")
        return ours.eager(batch)

    quick["failing"] = failing
    rows = runner.run_case(TINY_CASES[0], 2, "cpu", ["failing", "eager"])
    assert rows[0]["note"] == "RuntimeError: an illegal memory access"
    assert "ms" not in rows[0]
    assert [row["ratio_to_eager"] for row in rows[1:]] == ["1.00"] * 3


def test_modes_add_up(quick):
    rows = runner.run_case(TINY_CASES[0], 3, "cpu", ["authors"])
    forward, backward, full = (float(row["ms"]) for row in rows)
    assert 0 < forward < full
    assert 0 < backward < full


def test_peak_memory_counts_the_logits():
    case = Case("memory", 4096, 16, 4000)
    logits = 4096 * 4000 * 4 / 2**20
    eager, own = (peak_mib(case, name, make_batch(case)) for name in ("eager", "gft-chunked"))
    assert 2 * logits < eager["full"] < 5 * logits
    assert eager["full"] == max(eager["forward"], eager["backward"])
    assert own["full"] < logits / 4


@pytest.mark.parametrize("name", SETS)
def test_sets_have_cases_of_their_own_labels(name):
    labels = [case.label for case in SETS[name]]
    assert len(set(labels)) == len(labels)
    assert all(a == b or a not in b for a in labels for b in labels)  # a label selects one case


def test_every_head_is_in_the_gpu_run():
    assert {(case.D, case.V) for case in SETS["cuda"]} >= {shape for head, shape in HEADS.items() if head != "small"}


def test_append_rows_refuses_a_file_of_other_columns(tmp_path):
    record.append_rows(tmp_path / "a.csv", [{"x": 1}], ("x", "y"))
    record.append_rows(tmp_path / "a.csv", [{"y": 2}], ("x", "y"))
    assert record.read_rows(tmp_path / "a.csv") == [{"x": "1", "y": ""}, {"x": "", "y": "2"}]
    with pytest.raises(ValueError, match="write to another file"):
        record.append_rows(tmp_path / "a.csv", [{"z": 1}], ("z",))


def test_kernel_times_add_up_to_the_step():
    case = INTERPRETER_CASES[0]
    batch = make_batch(case)
    found = kernel_times(lambda: step(ours.find("gft-triton"), batch), cuda=False, rounds=1)
    assert set(found) == {*PARTS, "rest"}
    assert all(ms > 0 for ms in found.values())


def test_git_commit_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert record.git_commit() == "unknown"
    monkeypatch.setenv("GFT_COMMIT", "abc1234")
    assert record.git_commit() == "abc1234"


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
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu",
        "--dry-run",
        "--tests",
        "all_masked",
        "--providers",
        *chosen,
        "--skip-loop",
    ]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "OUT": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    rows = table(tmp_path)
    assert [(row["provider"], row["mode"]) for row in rows] == [
        (name, mode) for name in chosen for mode in runner.MODES
    ]
    optional = {"loss_error", "dh_error", "dw_error", "kernels", "note"}
    assert all(row[field] for row in rows for field in runner.FIELDS if field not in optional)
    assert all(f"{part}=" in rows[-1]["kernels"] for part in PARTS)
    assert not rows[-1]["note"]


@pytest.mark.slow
def test_gpu_time_limit_leaves_a_row_and_stages_can_be_skipped(tmp_path, monkeypatch):
    monkeypatch.setenv("OUT", str(tmp_path))
    assert gpu.main(["--dry-run", "--skip-tests", "--minutes", "0.01", "--skip-loop"]) == 1
    assert [(row["provider"], row["note"]) for row in table(tmp_path)] == [("all", "no time was left")]
    assert gpu.main(["--dry-run", "--skip-tests", "--cases"]) == 0
    assert {row["provider"] for row in record.read_rows(tmp_path / "dry-run-loop.csv")} >= {"eager", "gft-kernels"}
    assert len(table(tmp_path)) == 1


@pytest.mark.slow
def test_gpu_stage_that_crashes_or_hangs_is_named():
    assert gpu.run(["no_such_module"], 60, dry_run=True) == "ended with 1"
    assert gpu.run(["timeit", "-n1", "-r1", "import time; time.sleep(60)"], 1, dry_run=True) == "stopped after 1 s"


def test_csv_headers_are_those_of_the_runner():
    for name in ("cpu.csv", "gpu.csv"):
        path = ROOT / "benchmarks" / "results" / name
        if path.exists():
            assert record.header(path) == runner.FIELDS
