"""Every Python block of the README and of docs/ runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [
    pytest.param(page, block, id=f"{page.name}-{number}")
    for page in PAGES
    for number, block in enumerate(
        re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE), 1
    )
]


def test_pages_show_python():
    assert len({block.values[0] for block in BLOCKS}) == len(PAGES) >= 2


@pytest.mark.parametrize(("page", "block"), BLOCKS)
def test_block_runs(page, block, monkeypatch):
    monkeypatch.chdir(ROOT)
    exec(compile(block, str(page), "exec"), {"__name__": "readme"})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text())
    assert links
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing
