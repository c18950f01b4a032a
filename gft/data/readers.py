"""Readers: the rows of a file, each with its number, or what is wrong with it.

A fault of one row is a BadRow in its place. A fault of the whole file is an error that names it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .formats import BadRow, Row

if TYPE_CHECKING:
    from pyarrow import RecordBatch
    from pyarrow.parquet import ParquetFile

Numbered = Iterator[tuple[int, Row | BadRow]]  # from 1: lines of .jsonl, rows of .parquet

# First bytes of what is often given a wrong name: (what it is, what to do)
SIGNATURES = {
    b"PAR1": ("a parquet file", "give it the extension .parquet"),
    b"\x1f\x8b": ("compressed by gzip", "unpack it first"),
    b"\x28\xb5\x2f\xfd": ("compressed by zstd", "unpack it first"),
    b"\xfd7zXZ": ("compressed by xz", "unpack it first"),
    b"BZh": ("compressed by bzip2", "unpack it first"),
    b"PK\x03\x04": ("a zip archive", "unpack it first"),
    b"ARROW1": ("an Arrow file", "write its table as parquet"),
    b"\xff\xfe": ("text in UTF-16", "save it as UTF-8"),
    b"\xfe\xff": ("text in UTF-16", "save it as UTF-8"),
}
HEAD = 4096  # bytes that are looked at before a file is read


def rows_of(path: Path) -> Numbered:
    """The rows of a .jsonl or .parquet file. The name is taken as it is: it is no pattern.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: the file is of another kind, or damaged.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: give one file in it.")
    if path.suffix not in READERS:
        raise ValueError(
            f"{path}: unknown extension {path.suffix!r}: give a .jsonl or .parquet file, or rg:NAME for a "
            "reasoning-gym task."
        )
    if not path.is_file():
        pattern = " Patterns are not expanded: give one file." if set(str(path)) & set("*?[") else ""
        raise FileNotFoundError(f"{path}: there is no such file.{pattern}")
    with path.open("rb") as file:
        head = file.read(HEAD)
    for signature, (kind, advice) in SIGNATURES.items():
        if head.startswith(signature) and (path.suffix, signature) != (".parquet", b"PAR1"):
            raise ValueError(f"{path} is {kind}, in spite of its name: {advice}.")
    return READERS[path.suffix](path, head)


def _read_jsonl(path: Path, head: bytes) -> Numbered:
    if head.removeprefix(b"\xef\xbb\xbf").split(b"\n")[0].strip() == b"[":
        raise ValueError(
            f"{path} holds one JSON array over many lines: write each of its objects on a line of its own."
        )
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, _json_row(line)


def _json_row(line: bytes) -> Row | BadRow:
    try:
        row = json.loads(line.decode("utf-8-sig"), object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except BadRow as error:
        return error
    except RecursionError:
        return BadRow("invalid JSON: nested too deeply")
    except ValueError as error:
        return BadRow(f"invalid JSON: {error}")
    return row if isinstance(row, dict) else BadRow(f"a row must be an object, found {type(row).__name__}")


def _unique_keys(pairs: list[tuple[str, Any]]) -> Row:
    """The object of a JSON row. Of two equal keys, json would keep the last in silence."""
    row = dict(pairs)
    if len(row) < len(pairs):
        raise BadRow(f"duplicate key {_first_double([key for key, _ in pairs])!r}")
    return row


def _first_double(names: list[str]) -> str | None:
    return next((name for name, count in Counter(names).items() if count > 1), None)


def _refuse_constant(name: str) -> None:
    """Refuse NaN and Infinity, which Python's json would read."""
    raise BadRow(f"{name} is not JSON")


def _read_parquet(path: Path, head: bytes) -> Numbered:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(f"{path}: parquet needs pyarrow: pip install 'gft-kernels[train]'.") from error
    if not head:
        raise ValueError(f"{path}: no good row: the file is empty.")
    if head[:4] != b"PAR1":
        raise ValueError(f"{path}: not a readable parquet file: it begins with {head[:8]!r}, not with PAR1.")
    damage = (pyarrow.ArrowException, OSError)  # pyarrow raises both, without the name of the file
    try:
        # Opened here: pyarrow would take a name with a colon for an address.
        with path.open("rb") as source, pyarrow.parquet.ParquetFile(source, page_checksum_verification=True) as file:
            if double := _first_double(file.schema_arrow.names):
                raise ValueError(f"{path}: two columns are called {double!r}.")
            number = 0
            try:
                for batch in file.iter_batches(batch_size=1024):
                    for row in _batch_rows(batch):
                        number += 1
                        yield number, row
            except damage as error:
                where = _damaged_part(file, damage)
                raise ValueError(
                    f"{path}: damaged{where}: {_first_line(error)}. Get or write the file again."
                ) from error
    except damage as error:
        raise ValueError(f"{path}: not a readable parquet file: {_first_line(error)}") from error


def _batch_rows(batch: RecordBatch) -> Iterator[Row | BadRow]:
    """The rows of a batch. Text that is not UTF-8, or a date beyond Python's, makes a bad row."""
    try:
        yield from batch.to_pylist()
    except (ValueError, OverflowError):
        for i in range(batch.num_rows):
            try:
                yield from batch.slice(i, 1).to_pylist()
            except (ValueError, OverflowError) as error:
                yield BadRow(f"unreadable value: {_first_line(error)}")


def _damaged_part(file: ParquetFile, damage: tuple[type[Exception], ...]) -> str:
    """The first column of a row group that cannot be read, in words; "" if each can."""
    for group in range(file.num_row_groups):
        for column in file.schema_arrow.names:
            try:
                file.read_row_group(group, columns=[column])
            except damage:
                return f" in column {column!r} of row group {group}"
    return ""


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].strip().rstrip(".:")


READERS: dict[str, Callable[[Path, bytes], Numbered]] = {".jsonl": _read_jsonl, ".parquet": _read_parquet}
