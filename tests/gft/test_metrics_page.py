"""docs/training.md names every number that a run writes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import gft
from gft.settings.parts import GroupConfig, ReuseConfig

from .runs import config, run

PAGE = Path(gft.__file__).parents[1] / "docs" / "training.md"
SOURCES = ("expert", "teacher", "self")


def documented() -> list[str]:
    """Patterns of names in the last table of the page."""
    table = PAGE.read_text().partition("## What metrics.jsonl holds")[2]
    names = re.findall(r"`([a-zA-Z_*/]+)`", table)
    return [name.replace("SOURCE", f"({'|'.join(SOURCES)})").replace("*", ".*") for name in names]


@pytest.mark.parametrize(
    "settings",
    [
        config(),
        config(sparse=0.3),
        config(objective="grpo", group=GroupConfig(1, 0, 3), reuse=ReuseConfig(passes=2)),
        config(objective="sft", group=GroupConfig(1, 1, 0)),
    ],
    ids=["gft", "sparse", "grpo", "sft"],
)
def test_page_names_every_number_of_a_run(settings, policy, rewards, tmp_path):
    _, rows = run(policy, rewards, tmp_path, settings)
    patterns = documented()
    assert len(patterns) > 30
    assert not [key for row in rows for key in row if not any(re.fullmatch(p, key) for p in patterns)]
