"""The reference page and the picture of the rooms are those of the present code."""

import runpy
import shutil
from pathlib import Path

import pytest

import gft_kernels
from gft_kernels import parallel
from gft_kernels.integrations import hf

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "docs" / "scripts"
REFERENCE = runpy.run_path(str(SCRIPTS / "make_reference.py"))
DRAW = runpy.run_path(str(SCRIPTS / "draw_architecture.py"))


def test_reference_is_fresh():
    assert REFERENCE["main"](["--check"]) == 0, "run python docs/scripts/make_reference.py"


def test_reference_has_every_public_name():
    headings = [line[4:] for line in REFERENCE["page"]().splitlines() if line.startswith("### ")]
    elsewhere = {*parallel.__all__, *hf.__all__} - {"HeadParts"}
    assert sorted(headings) == sorted([*gft_kernels.__all__, *elsewhere])


def test_reference_keeps_shapes_and_defaults():
    declared = REFERENCE["declaration"](gft_kernels.linear_policy_loss, "linear_policy_loss")
    assert declared.startswith("linear_policy_loss(\n    hidden: Tensor,  # [N, D]\n")
    assert declared.endswith(") -> PolicyLoss")
    assert "noqa" not in declared
    assert "    chunk_rows: int | None = None," in REFERENCE["declaration"](gft_kernels.Backend, "Backend")
    assert REFERENCE["declaration"](gft_kernels.gft, "gft") == "gft(tau: float | Tensor = 0.7)"


def test_reference_makes_lists_of_arguments_and_errors():
    docstring = (
        "Do it.\n\nEquivalent to::\n\n    x + y\n\nArgs:\n    x, y: [N] one,\n        or two.\n    z: another.\n\n"
        "Returns:\n    [N] sums.\n\nRaises:\n    ValueError: a shape. TypeError: a dtype."
    )
    assert REFERENCE["prose"](docstring) == (
        "Do it.\n\nEquivalent to:\n\n```text\nx + y\n```\n\n"
        "Arguments:\n\n* `x`, `y`: [N] one, or two.\n* `z`: another.\n\nReturns [N] sums.\n\n"
        "Raises:\n\n* `ValueError`: a shape.\n* `TypeError`: a dtype."
    )


def test_stale_page_is_told(monkeypatch, tmp_path, capsys):
    page = tmp_path / "reference.md"
    page.write_text(REFERENCE["page"]() + "a line by hand\n")
    monkeypatch.setitem(REFERENCE["main"].__globals__, "PAGE", page)
    monkeypatch.setitem(REFERENCE["main"].__globals__, "ROOT", tmp_path)
    monkeypatch.setitem(REFERENCE["main"].__globals__, "page", lambda: "another page")
    assert REFERENCE["main"](["--check"]) == 1
    assert "reference.md is stale" in capsys.readouterr().err


def test_figure_is_fresh():
    assert DRAW["main"](["--check"]) == 0, "run python docs/scripts/draw_architecture.py"


def test_figure_has_every_file_of_the_rooms():
    drawing = DRAW["svg"]()
    for name in ("objectives", "triton/", "linear_logprob", "sampling/", "heads/"):
        assert f"{name}</text>" in drawing


@pytest.fixture
def copied_tree(tmp_path, monkeypatch):
    """A tree of its own for the drawing, which a test may spoil."""
    for folder in ("gft_kernels", "gft", "benchmarks"):
        shutil.copytree(
            ROOT / folder, tmp_path / folder, ignore=lambda d, names: [n for n in names if n.endswith(".csv")]
        )
    monkeypatch.setitem(DRAW["svg"].__globals__, "ROOT", tmp_path)
    return tmp_path


def test_figure_refuses_an_upward_import(copied_tree):
    (copied_tree / "gft_kernels" / "losses" / "fault.py").write_text("from ..engines.eager import head_logits\n")
    with pytest.raises(ValueError, match="losses imports engines, which the picture has above it"):
        DRAW["svg"]()


def test_figure_refuses_a_call_through_a_missing_file(copied_tree):
    (copied_tree / "gft_kernels" / "ops" / "plan.py").unlink()
    with pytest.raises(ValueError, match="gft_kernels/ops/plan, which does not exist"):
        DRAW["svg"]()


def test_figure_shows_a_new_file(copied_tree):
    (copied_tree / "gft_kernels" / "losses" / "novelty.py").write_text("")
    assert "novelty</text>" in DRAW["svg"]()
