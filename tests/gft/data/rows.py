"""Rows of the accepted formats, and short ways to read them back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gft.data.files import Example, load_examples

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

GROUP = {
    "prompt": "2+2=",
    "completions": ["4", "5"],
    "sources": ["expert", "teacher"],
    "rewards": [1.0, 0.0],
    "solution": "4",
}
GSM8K = {"question": "How many?", "answer": "48/2 = <<48/2=24>>24 a.\n1000+24 = <<1000+24=1024>>1,024\n#### 1,024"}
CHAT = [{"role": "user", "content": "2+2="}, {"role": "assistant", "content": "4"}]


def write(folder: Path, *rows, name: str = "data.jsonl") -> Path:
    """A .jsonl of rows (text is written as it is), or a .parquet."""
    path = folder / name
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    else:
        path.write_text(
            "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
        )
    return path


def load_one(folder: Path, row, name: str = "data.jsonl") -> Example:
    (example,) = load_examples(write(folder, row, name=name))
    return example


def reason(folder: Path, row, good=GROUP) -> str:
    """Why `row` is bad, beside one good row that decides the format."""
    with pytest.raises(ValueError, match="1 of 2 rows are bad") as caught:
        load_examples(write(folder, good, row))
    return str(caught.value).partition("data.jsonl:2: ")[2]
