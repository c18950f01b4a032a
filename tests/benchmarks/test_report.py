"""The figures of README and docs are the CSV's."""

from pathlib import Path

import pytest

from benchmarks.record import newest_run
from benchmarks.report import __main__ as report
from benchmarks.report import plot

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("page", report.PAGES)
def test_render_leaves_the_page_as_it_is(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert report.render(text, page) == text


@pytest.mark.parametrize(("page", "first"), [("README.md", "cpu-table"), ("docs/column-sparse.md", "sparse-variants")])
def test_render_needs_a_place_for_every_table(page, first):
    with pytest.raises(ValueError, match=f"{page} has 0 places for {first}"):
        report.render("# nothing", page)


@pytest.mark.parametrize("name", plot.figures())
def test_figures_are_drawn_from_the_rows_present(name):
    _, rows = plot.figures()[name]
    text = (plot.FIGURES / name).read_text(encoding="utf-8")
    assert f"rows {plot.digest(rows)}" in text, "run python -m benchmarks.report"


def test_figures_are_all_accounted_for():
    assert {path.name for path in plot.FIGURES.glob("*.svg")} == set(plot.figures())


def test_tables_take_one_run_only():
    rows = [
        {"date": "d", "commit": commit, "provider": provider, "mode": "full", "case": "c", "ms": ms}
        for commit, provider, ms in (("a", "eager", "1"), ("a", "gone", "2"), ("b", "eager", "3"))
    ]
    assert {name: row["ms"] for name, row in newest_run(rows, case="c").items()} == {"eager": "3"}
