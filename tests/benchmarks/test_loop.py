"""The end-to-end benchmark: gft's own step with the heads put in, and a wrong head is left out."""

import pytest
import torch

from benchmarks.loop import __main__ as tool
from benchmarks.loop import heads, task
from benchmarks.loop.compare import FIELDS
from benchmarks.record import read_rows
from gft_kernels import linear_policy_loss


def measured(out, *names):
    tool.main(["--tiny", "--steps", "2", "--out", str(out), "--heads", *names])
    return {row["provider"]: row for row in read_rows(out)}


def test_tiny_run_appends_complete_rows_of_the_same_loss(tmp_path):
    rows = measured(tmp_path / "rows.csv", "gft-kernels")
    assert list(rows) == ["eager", "gft-kernels"]
    for row in rows.values():
        assert all(row[name] for name in FIELDS if name != "note")
        assert not row["note"]
        assert row["tokens"] == "112"
    for name in ("loss", "grad_norm"):
        assert float(rows["gft-kernels"][name]) == pytest.approx(float(rows["eager"][name]), rel=1e-3)
    assert rows["eager"]["ratio_to_eager"] == "1.00"


def test_a_wrong_head_and_one_that_fails_leave_a_row_with_the_reason_and_no_speed(tmp_path, monkeypatch):
    def wrong(*tensors, **options):
        result = linear_policy_loss(*tensors, **options)
        return result._replace(loss=1.01 * result.loss)

    def failing(*tensors, **options):
        raise RuntimeError("no kernel")

    monkeypatch.setitem(heads.HEADS, "one per cent off", lambda: wrong)
    monkeypatch.setitem(heads.HEADS, "failing", lambda: failing)
    rows = measured(tmp_path / "rows.csv", "one per cent off", "failing")
    assert "differ by more than 1e-03" in rows["one per cent off"]["note"]
    assert rows["failing"]["note"] == "RuntimeError: no kernel"
    assert not any(rows[name]["steps_per_s"] for name in ("one per cent off", "failing"))
    assert rows["eager"]["steps_per_s"]


def test_a_quarter_of_the_groups_has_no_spread():
    rewards = {}
    for member in task.members(100, 4, (1, 2, 3, 4)):
        rewards.setdefault(member.group, set()).add(member.reward)
    assert sorted(map(len, rewards.values())) == [1, 2, 2, 2]


def test_a_missing_package_is_skipped_with_the_reason(monkeypatch, capsys):
    def missing():
        raise ImportError("No module named 'liger_kernel'")

    monkeypatch.setitem(heads.HEADS, "liger", missing)
    assert heads.available() == ["eager", "gft-kernels"]
    assert capsys.readouterr().out == "skipped liger: ImportError: No module named 'liger_kernel'\n"


def test_without_eager_nothing_is_timed(tmp_path, monkeypatch):
    def failing(*tensors, **options):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setitem(heads.HEADS, "eager", lambda: failing)
    rows = measured(tmp_path / "rows.csv", "gft-kernels")
    assert rows["eager"]["note"] == "OutOfMemoryError: out of memory"
    assert "eager failed" in rows["gft-kernels"]["note"]
