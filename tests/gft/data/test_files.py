"""Data files: a bad row is named, counted and never dropped in silence."""

from __future__ import annotations

import math

import pytest

from gft.data.files import Response, load_examples, reasoning_gym_examples

from .rows import GROUP, reason, write


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"prompt": ', "invalid JSON: Expecting value"),
        ("[1, 2]", "a row must be an object, found list"),
        ('{"prompt": "p", "completions": ["a"], "rewards": [NaN]}', "NaN is not JSON"),
        ('{"prompt": "p", "completions": ["a"], "rewards": [-Infinity]}', "-Infinity is not JSON"),
        (
            '{"prompt": "p", "completions": ["a"], "rewards": [1e999]}',
            "a reward must be a finite number or null, found inf",
        ),
        ('{"prompt": "p", "prompt": "q", "completions": ["a"]}', "duplicate key 'prompt'"),
        ('{"prompt": [{"role": "user", "role": "x"}], "completions": []}', "duplicate key 'role'"),
        ('{"completions": ["a"]}', "'prompt' is missing"),
        ("[" * 100_000, "invalid JSON: "),
    ],
)
def test_load_examples_refuses_lines_that_are_no_rows(tmp_path, line, expected):
    assert reason(tmp_path, line).startswith(expected)


def test_load_examples_refuses_bytes_that_are_not_utf8(tmp_path):
    path = write(tmp_path, GROUP)
    path.write_bytes(path.read_bytes() + b'{"prompt": "\xff"}\n')
    with pytest.raises(ValueError, match=r"data.jsonl:2: invalid JSON: 'utf-8' codec can't decode"):
        load_examples(path)


def test_load_examples_reads_past_a_byte_order_mark_and_blank_lines(tmp_path):
    path = write(tmp_path, "", GROUP, "  ", GROUP | {"prompt": "a\u2028b"})  # U+2028 ends no line of JSON
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().lstrip(b"\n"))
    assert [example.origin.rpartition(":")[2] for example in load_examples(path)] == ["1", "3"]


def test_load_examples_refuses_nan_in_parquet(tmp_path):
    path = write(tmp_path, GROUP, GROUP | {"rewards": [math.nan, 0.0]}, name="data.parquet")
    with pytest.raises(ValueError, match=r"data.parquet:2: a reward must be a finite number or null, found nan"):
        load_examples(path)


def test_load_examples_warns_of_bad_rows_below_the_threshold(tmp_path, capsys):
    path = write(tmp_path, *[GROUP] * 93, *["{}"] * 7)
    examples = load_examples(path, max_bad_fraction=0.07)
    assert len(examples) == 93
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"warning: {path}:94: 'prompt' is missing"
    assert lines[-1] == f"warning: {path}: 7 of 100 rows are bad and were left out"
    assert len(lines) == 6
    with pytest.raises(ValueError, match=r"7 of 100 rows are bad, more than the 6\.90% allowed"):
        load_examples(path, max_bad_fraction=0.069)


def test_load_examples_counts_rows_before_the_format_is_known(tmp_path, capsys):
    assert len(load_examples(write(tmp_path, {"text": "x"}, GROUP), max_bad_fraction=0.5)) == 1
    assert "data.jsonl:1: unknown columns text" in capsys.readouterr().err


def test_load_examples_lists_columns_found_and_accepted(tmp_path):
    for name in ("data.jsonl", "data.parquet"):
        with pytest.raises(
            ValueError, match=r"unknown columns id, text. Accepted: prompt \+ completions; .*question \+ answer\."
        ):
            load_examples(write(tmp_path, {"text": "x", "id": 1}, name=name))


def test_load_examples_refuses_files_without_a_good_row(tmp_path):
    with pytest.raises(ValueError, match="no good row: the file is empty"):
        load_examples(write(tmp_path))
    with pytest.raises(ValueError, match=r"no good row; the first bad one: .*data.jsonl:1: invalid JSON"):
        load_examples(write(tmp_path, "{"), max_bad_fraction=1.0)


def test_load_examples_refuses_unknown_broken_and_missing_files(tmp_path):
    with pytest.raises(ValueError, match=r"unknown extension '.csv': give a .jsonl or .parquet file"):
        load_examples(tmp_path / "data.csv")
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        load_examples(tmp_path / "none.jsonl")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 is not enough")
    with pytest.raises(ValueError, match="not a readable parquet file"):
        load_examples(tmp_path / "broken.parquet")


def test_load_examples_stops_at_the_limit(tmp_path):
    path = write(tmp_path, GROUP, "{}", GROUP, GROUP, "{", "{")
    assert [e.origin[-1] for e in load_examples(path, limit=2, max_bad_fraction=0.5)] == ["1", "3"]
    with pytest.raises(ValueError, match="limit = 0"):
        load_examples(path, limit=0)


def test_reasoning_gym_examples_repeat_with_the_seed():
    pytest.importorskip("reasoning_gym")
    first, again, other = (reasoning_gym_examples("leg_counting", 3, seed) for seed in (1, 1, 2))
    assert first == again != other
    assert [example.responses for example in first] == [(Response(example.solution, "expert"),) for example in first]
    assert first[0].data_source == "reasoning_gym/leg_counting"
    assert load_examples("rg:leg_counting", limit=3) == reasoning_gym_examples("leg_counting", 3, seed=0)
    with pytest.raises(ValueError, match="rg:composite: the task cannot be made from a size and a seed: Must specify"):
        load_examples("rg:composite")
    with pytest.raises(ValueError, match=r"rg:leg_count: reasoning-gym has no such task; it has .*leg_counting"):
        load_examples("rg:leg_count")


def test_load_examples_of_a_task_differ_with_the_seed():
    """Entry i is made from seed + i: near seeds share entries, and a distant one has its own."""
    pytest.importorskip("reasoning_gym")
    trained = {e.prompt for e in load_examples("rg:chain_sum", limit=20)}
    held_out = {e.prompt for e in load_examples("rg:chain_sum", limit=20, seed=1_000_003)}
    assert len(trained) == len(held_out) == 20
    assert not trained & held_out
