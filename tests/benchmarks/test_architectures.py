"""The sweep over architectures: rows are as committed, and a wrong or hanging model is seen."""

from __future__ import annotations

import os
import time

import pytest
import torch

from benchmarks.architectures import __main__ as tool
from benchmarks.architectures import compare, tables, tiny
from benchmarks.architectures.pool import each
from benchmarks.record import read_rows
from gft_kernels.env import version
from gft_kernels.integrations import fuse

# A plain head with adapters before it, one behind a dense and a norm, one that is scaled.
FAST = ("llama+lora", "bert", "granite")
MORE = ("gemma2", "gpt2", "mamba2", "mixtral", "cohere2", "qwen3_next", "deepseek_v3", "recurrent_gemma", "prophetnet")


@pytest.mark.parametrize("name", FAST)
def test_measured_row_is_the_committed_one(name):
    row, committed = compare.measure(name), tables.newest()[name]
    for column in ("class", "parameters", "status", "scale", "softcap", "tied"):
        assert str(row[column]) == committed[column]
    assert row["status"] == "exact"


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_more_measured_rows_are_the_committed_ones(name):
    assert compare.measure(name)["status"] == tables.newest()[name]["status"]


def test_every_model_type_has_a_row_and_none_is_wrong():
    rows = tables.newest()
    if version("transformers") != rows["llama"]["transformers"]:
        pytest.skip("another version of transformers has other models")
    assert rows.keys() == {*tiny.MODEL_TYPES, *tiny.ADAPTED}
    assert not [name for name, row in rows.items() if row["status"] == "wrong"]
    assert len(tables.with_status("exact")) >= 160
    assert {row["status"] for row in tables.adapted()} == {"exact"}
    assert all(float(row["error"]) <= compare.EXACT for row in tables.with_status("exact"))
    assert all(row["reason"] for row in rows.values() if row["status"] != "exact")


def forget_the_scale(monkeypatch):
    plain = fuse.find_transforms
    monkeypatch.setattr(fuse, "find_transforms", lambda *given: fuse.replace(plain(*given), scale=1.0))


def forget_the_bias(monkeypatch):
    monkeypatch.setattr(fuse, "_compute", without_bias(fuse._compute))


def without_bias(plain):
    return lambda hidden, weight, rows, head, backend: plain(
        hidden, weight, rows, fuse.replace(head, bias=None), backend
    )


def double_a_gradient(monkeypatch):
    plain = fuse._compute
    monkeypatch.setattr(fuse, "_compute", lambda hidden, *rest: plain(hidden + (hidden - hidden.detach()), *rest))


FAULTS = [(forget_the_scale, "granite"), (forget_the_bias, "bert"), (double_a_gradient, "llama")]


@pytest.mark.parametrize(("fault", "name"), FAULTS)
def test_a_wrong_loss_is_seen(fault, name, monkeypatch):
    fault(monkeypatch)
    row = compare.measure(name)
    assert row["status"] == "wrong"
    assert float(row["error"]) > 0.01
    assert row["dtype"] == "float64"


def test_a_refusal_and_a_model_that_is_not_built_have_their_reasons():
    refused, absent = compare.measure("prophetnet"), compare.measure("musicgen")
    assert refused["status"] == "refused"
    assert "calls its head on hidden states of shape (2, 2, 4, 32)" in refused["reason"]
    assert absent == {"status": "not built", "reason": absent["reason"]}
    assert "MusicgenConfig" in absent["reason"]


def hang_or_die(name):
    if name == "hangs":
        time.sleep(60)
    if name == "dies":
        os._exit(3)
    if name == "raises":
        raise KeyError("a fault")
    return name.upper()


def test_one_that_hangs_or_dies_ends_none_of_the_others():
    found = dict(each(hang_or_die, ["hangs", "dies", "raises", "a", "b"], workers=2, limit=2.0))
    assert {name: str(result) for name, result in found.items()} == {
        "hangs": "it took more than 2 s",
        "dies": "its process died",
        "raises": "KeyError: 'a fault'",
        "a": "A",
        "b": "B",
    }


def test_sweep_appends_a_row_a_type(tmp_path, monkeypatch):
    monkeypatch.setattr(tool, "measure", lambda name: {"status": "exact", "reason": "", "error": "1e-06"})
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    out = tmp_path / "rows.csv"
    tool.main(["opt", "llama", "--out", str(out)])
    rows = read_rows(out)
    assert [row["model_type"] for row in rows] == ["llama", "opt"]
    assert all(row[name] for row in rows for name in ("date", "commit", "torch", "transformers", "status", "error"))
