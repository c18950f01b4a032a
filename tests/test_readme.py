"""Every Python block of the README runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", README.read_text(), flags=re.DOTALL | re.MULTILINE)


def test_readme_shows_python():
    assert BLOCKS


@pytest.mark.parametrize("block", BLOCKS, ids=range(1, len(BLOCKS) + 1))
def test_readme_block_runs(block, monkeypatch):
    monkeypatch.chdir(README.parent)
    exec(compile(block, str(README), "exec"), {"__name__": "readme"})
