"""Files that are not what their names say, or are damaged: one error names the file, and the row or
column where there is one.
"""

from __future__ import annotations

import bz2
import datetime
import gzip
import json
import lzma

import pytest

from gft.data.files import load_examples

from .rows import GROUP, pa, pq, write

DEMONSTRATION = {"prompt": "2+2=", "completion": "4"}


def refusal(path, **options):
    """What is said of a file that is refused, in one line without its name."""
    with pytest.raises((ValueError, OSError)) as caught:
        load_examples(path, **options)
    text = str(caught.value)
    assert text.startswith(str(path))
    assert "\n" not in text
    return text.removeprefix(str(path))


def words_alone(value):
    """A readable name for a case: its bytes are none."""
    return value if isinstance(value, str) else ""


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (gzip.compress(b"{}", mtime=0), "is compressed by gzip, in spite of its name: unpack it first"),
        (bz2.compress(b"{}"), "is compressed by bzip2, in spite of its name: unpack it first"),
        (lzma.compress(b"{}"), "is compressed by xz, in spite of its name: unpack it first"),
        (b"\x28\xb5\x2f\xfd\x00", "is compressed by zstd, in spite of its name: unpack it first"),
        (b"PK\x03\x04", "is a zip archive, in spite of its name: unpack it first"),
        ('{"prompt": "a"}'.encode("utf-16"), "is text in UTF-16, in spite of its name: save it as UTF-8"),
        (b"PAR1", "is a parquet file, in spite of its name: give it the extension .parquet"),
        (b'\xef\xbb\xbf[\n{"prompt": "a"},\n', "holds one JSON array over many lines: write each of its objects"),
        (b"", ": no good row: the file is empty"),
        (b"\n\r\n", ": no good row: the file is empty"),
    ],
    ids=words_alone,
)
def test_load_examples_tells_what_a_jsonl_file_really_is(tmp_path, content, words):
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    assert refusal(path).lstrip().startswith(words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"prompt": "a"}\n', "not a readable parquet file: it begins with b'{\"prompt', not with PAR1"),
        (gzip.compress(b"{}", mtime=0), "is compressed by gzip"),
        (b"", "no good row: the file is empty"),
        (b"PAR1" + bytes(40), "not a readable parquet file: Parquet magic bytes not found in footer"),
    ],
    ids=words_alone,
)
def test_load_examples_tells_what_a_parquet_file_really_is(tmp_path, content, words):
    path = tmp_path / "data.parquet"
    path.write_bytes(content)
    assert words in refusal(path)


def test_load_examples_takes_names_as_they_are(tmp_path):
    """Brackets, stars and colons are part of a name where there is such a file."""
    for name in ("data[1].jsonl", "a*b?.jsonl", "s3:x.jsonl", "data[1].parquet", "a:b.parquet", "ü ß.parquet"):
        assert len(load_examples(write(tmp_path, GROUP, name=name))) == 1
    (tmp_path / "data1.jsonl").write_text("{")
    assert refusal(tmp_path / "data?.jsonl") == (": there is no such file. Patterns are not expanded: give one file.")
    assert refusal(tmp_path / "none.jsonl") == ": there is no such file."


def test_load_examples_refuses_folders(tmp_path):
    for name in ("rows", "rows.jsonl", "rows.parquet"):
        (tmp_path / name).mkdir()
        assert refusal(tmp_path / name) == " is a folder: give one file in it."


def test_load_examples_reads_lines_that_end_as_on_windows(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"\r\n".join([b"\xef\xbb\xbf" + json.dumps(GROUP).encode(), b"", json.dumps(GROUP).encode()]))
    assert [e.origin[-1] for e in load_examples(path)] == ["1", "3"]


@pytest.mark.parametrize(
    ("rewards", "found"),
    [
        ("1" + "0" * 400, "1000000000000"),  # beyond a float
        ("-1" + "0" * 400, "-1000000000000"),
        ("[" * 900 + "]" * 900, "[[[[[["),
        (json.dumps("x" * 500), "'xxxxxxx"),
    ],
)
def test_load_examples_shows_the_beginning_of_a_value_that_is_no_reward(tmp_path, rewards, found):
    path = write(tmp_path, f'{{"prompt": "a", "completions": ["b"], "rewards": [{rewards}]}}')
    said = refusal(path)
    assert f"{path}:1: a reward must be a finite number or null, found {found}" in said
    assert len(said) < 300 + len(str(path))


def test_load_examples_refuses_numbers_too_long_to_read(tmp_path):
    path = write(tmp_path, f'{{"prompt": "a", "completion": "b", "solution": {"1" * 5000}}}')
    assert ":1: invalid JSON: Exceeds the limit (4300 digits)" in refusal(path)


# Parquet


def big(folder, **options):
    """A file of three row groups, with known places."""
    rows = [{"prompt": f"p{i}", "completion": f"{'x' * 60}{i:04}"} for i in range(600)]
    path = folder / "data.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=200, use_dictionary=False, **options)
    return path


@pytest.mark.parametrize("header", [True, False])
def test_load_examples_names_the_damaged_column_and_row_group(tmp_path, header):
    path = big(tmp_path, compression="none", write_page_checksum=True)
    content = bytearray(path.read_bytes())
    column = pq.ParquetFile(path).metadata.row_group(1).column(1)
    start = column.data_page_offset if header else content.index(b"0300", column.data_page_offset)
    content[start : start + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    assert refusal(path).startswith(": damaged in column 'completion' of row group 1: ")


def test_load_examples_refuses_a_parquet_file_that_was_cut(tmp_path):
    path = big(tmp_path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert refusal(path).startswith(": not a readable parquet file: Parquet magic bytes not found in footer")


def test_load_examples_refuses_a_parquet_file_with_a_broken_footer(tmp_path):
    path = big(tmp_path)
    content = bytearray(path.read_bytes())
    content[-300:-8] = b"\xff" * 292
    path.write_bytes(content)
    assert refusal(path).startswith(": not a readable parquet file: ")


def test_load_examples_leaves_out_the_parquet_row_whose_text_is_not_utf8(tmp_path, capsys):
    path = big(tmp_path, compression="none")
    path.write_bytes(path.read_bytes().replace(b"x" * 60 + b"0300", b"\xff" + b"x" * 59 + b"0300"))
    rows = load_examples(path)
    assert [e.origin.rpartition(":")[2] for e in rows] == [str(i) for i in range(1, 601) if i != 301]
    assert f"warning: {path}:301: unreadable value: 'utf-8' codec can't decode byte 0xff" in capsys.readouterr().err


def test_load_examples_leaves_out_the_parquet_row_with_a_date_beyond_pythons(tmp_path, capsys):
    path = tmp_path / "data.parquet"
    days = pa.array([0, 10**8], pa.date32())
    pq.write_table(pa.table({"prompt": ["a", "b"], "completion": ["c", "d"], "day": days}), path)
    assert [e.prompt for e in load_examples(path, max_bad_fraction=0.5)] == ["a"]
    assert f"{path}:2: unreadable value: date value out of range" in capsys.readouterr().err


def test_load_examples_refuses_two_parquet_columns_of_one_name(tmp_path):
    pq.write_table(pa.table([["a"], ["b"], ["c"]], names=["prompt", "completion", "prompt"]), tmp_path / "d.parquet")
    assert refusal(tmp_path / "d.parquet") == ": two columns are called 'prompt'."


def test_load_examples_of_parquet_says_what_is_no_text(tmp_path):
    today = datetime.date(2026, 11, 25)
    for value, found in ((b"a", "bytes"), (today, "date"), ({"text": "a"}, "dict"), (1.5, "float")):
        path = write(tmp_path, DEMONSTRATION | {"prompt": value}, name="data.parquet")
        assert f":1: prompt must be text, found {found}" in refusal(path)
