"""Prompts with given responses, from the files people have.

    FILE.jsonl, FILE.parquet    rows in one of `FORMATS`, which is recognised by the columns
    rg:NAME                     a procedural task of reasoning-gym

A bad row is never dropped in silence. It is named as file:line with the reason, and too many of
them stop the run.
"""

from __future__ import annotations

import sys
from pathlib import Path

from .formats import FORMATS, BadRow, Example, Response, Source, recognise, with_suffix
from .readers import rows_of

__all__ = [
    "BadRow",
    "Example",
    "Response",
    "Source",
    "load_examples",
    "read_examples",
    "reasoning_gym_examples",
    "refuse_bad_rows",
    "report_bad_rows",
]

WARNINGS_SHOWN = 5


def load_examples(
    path: str | Path,
    *,
    limit: int | None = None,
    max_bad_fraction: float = 0.01,
    seed: int = 0,
    prompt_suffix: str | None = None,
) -> list[Example]:
    """Read the examples of a data file, or of a task of reasoning-gym.

    Args:
        path: a .jsonl or .parquet file in one of `FORMATS`, or "rg:NAME". Columns that the format
            does not know are ignored.
        limit: stop after this many good rows. A task has 1000 entries if it is None.
        max_bad_fraction: the share of bad rows that is put up with (--max-bad-fraction). They are
            listed on stderr.
        seed: of a task. Entry i is made from seed + i, so that held-out entries need a seed far
            from that of training.
        prompt_suffix: what every prompt ends with: see `with_suffix`.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: a file of another kind, unknown columns, too many bad rows, or no good one.
    """
    examples, bad = read_examples(path, limit=limit, seed=seed, prompt_suffix=prompt_suffix)
    report_bad_rows(str(path), bad, len(examples), max_bad_fraction)
    return examples


def read_examples(
    path: str | Path, *, limit: int | None = None, seed: int = 0, prompt_suffix: str | None = None
) -> tuple[list[Example], list[str]]:
    """Examples as `load_examples` reads them, and the bad rows: "file:line: what is wrong with it".

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: a file of another kind, or unknown columns.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit = {limit} must be positive, or None for all rows.")
    if str(path).startswith("rg:"):
        task = reasoning_gym_examples(str(path)[3:], 1000 if limit is None else limit, seed)
        return [with_suffix(example, prompt_suffix) if prompt_suffix else example for example in task], []
    path = Path(path)
    examples: list[Example] = []
    bad: list[str] = []
    columns: set[str] = set()
    convert = None
    for number, row in rows_of(path):
        if limit is not None and len(examples) >= limit:
            break
        origin = f"{path}:{number}"
        try:
            if isinstance(row, BadRow):
                raise row
            columns |= row.keys()
            convert = convert or recognise(row)
            example = convert(row, origin)
            examples.append(with_suffix(example, prompt_suffix) if prompt_suffix else example)
        except BadRow as error:
            bad.append(f"{origin}: {error}")
    if convert is None and columns:
        raise ValueError(
            f"{path}: unknown columns {', '.join(sorted(columns))}. Accepted: {'; '.join(map(' + '.join, FORMATS))}."
        )
    return examples, bad


def reasoning_gym_examples(name: str, size: int, seed: int) -> list[Example]:
    """`size` entries of a procedural task.

    The answer of an entry is both its expert response and its solution.

    Raises:
        ValueError: there is no such task, or it has entries without an answer.
    """
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise ImportError("rg:NAME needs reasoning-gym: pip install 'gft-kernels[train]'.") from error
    if name not in DATASETS:
        raise ValueError(f"rg:{name}: reasoning-gym has no such task; it has {', '.join(sorted(DATASETS))}.")
    try:
        entries = reasoning_gym.create_dataset(name, size=size, seed=seed)
    except AssertionError as error:  # how its tasks refuse their settings
        raise ValueError(f"rg:{name}: the task cannot be made from a size and a seed: {error}.") from error
    examples = []
    for i, entry in enumerate(entries):
        answer = entry["answer"]
        if not isinstance(answer, str) or not answer.strip():
            raise ValueError(
                f"rg:{name}: entry {i} has the answer {answer!r}; only tasks whose entries carry an answer can be used."
            )
        examples.append(
            Example(entry["question"], answer, (Response(answer, "expert"),), f"reasoning_gym/{name}", f"rg:{name}:{i}")
        )
    return examples


def report_bad_rows(path: str, bad: list[str], good: int, max_bad_fraction: float) -> None:
    """Name the first bad rows of a file on stderr: "file:line: what is wrong with it".

    Raises:
        ValueError: there are too many, or no good row.
    """
    for line in bad[:WARNINGS_SHOWN]:
        print(f"warning: {line}", file=sys.stderr)
    if bad:
        print(f"warning: {path}: {len(bad)} of {len(bad) + good} rows are bad and were left out", file=sys.stderr)
    refuse_bad_rows(path, bad, good, max_bad_fraction)


def refuse_bad_rows(path: str, bad: list[str], good: int, max_bad_fraction: float) -> None:
    """Refuse a file for its bad rows.

    Raises:
        ValueError: there are too many, or no good row.
    """
    if good == 0:
        raise ValueError(
            f"{path}: no good row" + (f"; the first bad one: {bad[0]}." if bad else ": the file is empty.")
        )
    if len(bad) > max_bad_fraction * (len(bad) + good):
        raise ValueError(
            f"{path}: {len(bad)} of {len(bad) + good} rows are bad, more than the {max_bad_fraction:.2%} allowed: "
            f"mend them, or raise --max-bad-fraction. The first one: {bad[0]}."
        )
