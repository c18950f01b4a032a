"""Answers to held-out prompts, and samples.jsonl, where they are kept: one JSON object a line."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from .data.files import Example

SAMPLES = "samples.jsonl"  # of `gft eval --out`
FOLDER = "samples"  # of a run: step-20.jsonl holds the answers after step 20
KEPT_SAMPLES = 4  # of a prompt that a run keeps the texts of


@dataclass(frozen=True)
class Answer:
    """One response to a held-out prompt. Its line in samples.jsonl has the same names."""

    prompt_index: int  # the place of the prompt in the data
    prompt_id: str  # a hash of prompt and solution: the same prompt in other data
    source: Literal["greedy", "sample"]
    sample: int  # 0, 1, ... among the samples of the prompt
    reward: float | None
    error: str | None  # why there is no reward
    truncated: bool
    prompt: Any = ""  # a text, or the messages of a chat
    response: str = ""
    solution: str = ""
    tokens: Sequence[int] = ()  # of the response, with its end token


def prompt_id(example: Example) -> str:
    """A short hash of what is asked and what is right."""
    return hashlib.sha256(json.dumps([example.prompt, example.solution], default=str).encode()).hexdigest()[:12]


def read_answers(path: Path) -> list[Answer]:
    """The answers of a file, up to the first line that is none: a killed process may leave half.

    Raises:
        OSError: it cannot be read.
    """
    return [answer for answer, _ in _lines(path)]


def _lines(path: Path) -> Iterator[tuple[Answer, int]]:
    """Answers, and the bytes of their lines."""
    names = {f.name for f in fields(Answer)}
    with path.open("rb") as file:
        for line in file:
            try:
                row = json.loads(line)
                answer = Answer(**{name: value for name, value in row.items() if name in names})
            except (ValueError, TypeError, AttributeError):
                return
            if not line.endswith(b"\n"):
                return
            yield answer, len(line)


class AnswerLog:
    """samples.jsonl as it grows; `answers` are those that were there."""

    def __init__(self, file: Any, answers: list[Answer]) -> None:
        self.file, self.answers = file, answers

    def add(self, answers: Iterable[Answer]) -> None:
        """Append answers, and wait until they are on the disk: they took minutes to make."""
        self.file.write("".join(_line(answer) for answer in answers).encode())
        self.file.flush()
        os.fsync(self.file.fileno())


@contextmanager
def answer_log(path: Path) -> Iterator[AnswerLog]:
    """Open samples.jsonl to go on behind its last whole line.

    Raises:
        OSError: it cannot be written, or another process writes to it.
    """
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OSError(f"{path} is in use: another evaluation writes there. Give another --out.") from error
        except OSError:  # some file systems have no locks
            pass
        found = list(_lines(path))
        file.truncate(sum(size for _, size in found))
        yield AnswerLog(file, [answer for answer, _ in found])


def write_answers(out: Path, step: int, answers: Sequence[Answer], prompts: int) -> None:
    """Keep the answers of a run's evaluation after `step`, in place of what has that name.

    Texts of the first `prompts` prompts are kept: the greedy response and the first samples. Of the
    others their rewards, which comparisons of runs need. A disk without room is told and ends no
    run.
    """
    if prompts == 0:
        return
    folder = out / FOLDER
    lines = [_line(a, whole=a.prompt_index < prompts and a.sample < KEPT_SAMPLES) for a in answers]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fresh = folder / ".fresh"
        fresh.write_text("".join(lines))
        os.replace(fresh, folder / f"step-{step}.jsonl")  # whole or not there, whenever the process is killed
    except OSError as error:
        print(f"warning: the answers of step {step} are not kept: {error}", file=sys.stderr)


def _line(answer: Answer, whole: bool = True) -> str:
    row = asdict(answer)
    if not whole:
        row = {name: row[name] for name in row if name not in ("prompt", "response", "solution", "tokens")}
    return json.dumps(row) + "\n"
