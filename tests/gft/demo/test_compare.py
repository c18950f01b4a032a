"""The comparison, shortened: one base for all, each method on its own responses, the same numbers
again.
"""

import io
import multiprocessing
from dataclasses import replace

import pytest
from rich.console import Console

from gft.demo import base_model, compare
from gft.settings.config import EMBEDDED
from gft.settings.parts import EvalConfig

from ..runs import numbers

SHORT = replace(EMBEDDED, steps=2, prompts_per_step=3, evaluate=EvalConfig(1, eval_prompts=8, eval_samples=2))
SOURCES = ("expert", "teacher", "self")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the comparison in a folder of that name; its results, curves and printed text."""
    monkeypatch.setattr(base_model, "PRETRAIN_STEPS", 30)

    def run(folder, jobs=1):
        config, text = replace(SHORT, out=tmp_path / folder), io.StringIO()
        results = compare.compare(config, Console(file=text, width=100), jobs)
        return results, compare.read_curves(config), text.getvalue()

    return run


def test_every_method_starts_from_the_same_base_and_ends_elsewhere(run):
    results, curves, _ = run("once")
    assert list(results) == ["base", *compare.METHODS]
    evaluations = {name: [r for r in rows if "eval_sampled" in r] for name, rows in curves.items()}
    assert len({str(rows[0]) for rows in evaluations.values()}) == 1
    assert {name: rows[-1]["eval_sampled"] for name, rows in evaluations.items()} == {
        name: results[name]["sampled"] for name in compare.METHODS
    }
    norms = {name: [r["grad_norm"] for r in rows if "loss" in r] for name, rows in curves.items()}
    assert len({str(values) for values in norms.values()}) == len(compare.METHODS)


def test_methods_read_the_responses_they_are_named_for(run):
    results, curves, text = run("once")
    read = {name: (results[name]["sequences"], results[name]["own"]) for name in compare.METHODS}
    assert read == {
        "SFT on experts": (3, 0),
        "SFT on the mix": (12, 0),
        "GFT": (24, 12),
        "GFT, given": (24, 12),
        "GRPO": (24, 24),
    }
    assert {name: [r["sequences"] for r in rows if "loss" in r] for name, rows in curves.items()} == {
        name: [sequences] * 2 for name, (sequences, _) in read.items()
    }
    scored = {name: [s for s in SOURCES if f"reward_{s}" in rows[1]] for name, rows in curves.items()}
    assert scored == {
        "SFT on experts": [],
        "SFT on the mix": [],
        "GFT": list(SOURCES),
        "GFT, given": list(SOURCES),
        "GRPO": ["self"],
    }
    assert "24 (12 own)" in text
    assert "24 (24 own)" in text


def test_methods_side_by_side_have_the_numbers_of_one_by_one(run):
    (apart, apart_curves, text), (alone, alone_curves, _) = run("apart", jobs=2), run("alone")
    for results in (apart, alone):
        for row in results.values():
            del row["seconds"]
    assert apart == alone
    assert {name: numbers(rows) for name, rows in apart_curves.items()} == {
        name: numbers(rows) for name, rows in alone_curves.items()
    }
    assert "24 (12 own)" in text


def test_method_that_fails_ends_the_comparison_and_leaves_no_process(run, tmp_path, monkeypatch):
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "gft-given").write_text("in the way")  # of that method's folder
    with pytest.raises(OSError, match="gft-given"):
        run("half", jobs=2)
    assert multiprocessing.active_children() == []


def test_compare_gives_the_same_numbers_again(run):
    first, second = run("once"), run("again")
    plain = [{name: numbers(rows) for name, rows in curves.items()} for _, curves, _ in (first, second)]
    assert plain[0] == plain[1]
