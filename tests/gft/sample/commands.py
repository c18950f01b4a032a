"""gft sample on a tiny teacher, as a user types it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

ROWS = 7
REWARD = "gft.demo.sort_letters:reward"


def command(folder: Path, out: Path, *options: str) -> list[str]:
    """Three responses to each of two rows at once."""
    given = ["--model", str(folder / "teacher"), "--data", str(folder / "data.jsonl"), "--out", str(out)]
    sizes = ["--samples", "3", "--batch", "6", "--max-new-tokens", "12", "--device", "cpu", "--reward", REWARD]
    return ["sample", *given, *sizes, *options]


def rows_of(path: Path) -> Iterator[dict]:
    return (json.loads(text) for text in path.read_text().splitlines())
