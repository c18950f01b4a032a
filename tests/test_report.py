"""The README's figures are the CSV's."""

from pathlib import Path

import pytest

from benchmarks import report

README = Path(__file__).parent.parent / "README.md"


def test_render_leaves_the_readme_as_it_is():
    text = README.read_text(encoding="utf-8")
    assert report.render(text) == text


def test_render_needs_a_place_for_every_table():
    with pytest.raises(ValueError, match="has 0 places for cpu-table"):
        report.render("# nothing")
