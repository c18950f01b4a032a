"""A teacher with its data, and the file of a run that nothing interrupted."""

from __future__ import annotations

import json

import pytest

from gft import cli
from gft.demo import sort_letters
from gft.demo.base_model import tokenizer, untrained

from .commands import ROWS, command


@pytest.fixture(scope="package")
def folder(tmp_path_factory):
    """A teacher, and rows of two experts, one of them with a reward."""
    path = tmp_path_factory.mktemp("sample")
    untrained(0).save_pretrained(path / "teacher")
    tokenizer().save_pretrained(path / "teacher")
    rows = [
        {
            "prompt": e.prompt,
            "completions": [e.solution, "zzz"],
            "sources": ["expert", "teacher"],
            "rewards": [None, 0.25],
            "solution": e.solution,
            "data_source": "letters",
        }
        for e in sort_letters.examples(ROWS, seed=0)
    ]
    (path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="package")
def whole(folder):
    """The file of a run that nothing interrupted."""
    cli.main(command(folder, folder / "whole.jsonl"))
    return folder / "whole.jsonl"
