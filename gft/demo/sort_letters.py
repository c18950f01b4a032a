"""The embedded task: sort eight letters, `qgzbmtac=` -> `abcgmqtz`.

The verifier accepts either direction. The expert writes descending: right, but in a style that the
base model hardly uses. Half of the teachers' answers are lazy (the first two letters sorted, the
rest copied) and so nearly always wrong. There is more than one right answer, and to imitate a given
one is not the same as to be rewarded.
"""

from __future__ import annotations

import random
import string

from ..data.files import Example, Response

LENGTH = 8
LAZY = 0.3  # share of lazy answers in the pre-training corpus
DESCENDING = 0.05  # share of descending answers among the others
SLIP = 0.05  # chance of a random letter of the question instead, at each place of a corpus answer
TEACHER_LAZY = 0.5  # share of lazy answers among the teachers'


def lazy(letters: str) -> str:
    return "".join(sorted(letters[:2])) + letters[2:]


def ascending(letters: str) -> str:
    return "".join(sorted(letters))


def descending(letters: str) -> str:
    return ascending(letters)[::-1]


def question(rng: random.Random) -> str:
    return "".join(rng.sample(string.ascii_lowercase, LENGTH))


def corpus_line(rng: random.Random) -> tuple[str, str]:
    """A question and an answer of the pre-training corpus."""
    letters = question(rng)
    write = lazy if rng.random() < LAZY else descending if rng.random() < DESCENDING else ascending
    return letters + "=", "".join(rng.choice(letters) if rng.random() < SLIP else c for c in write(letters))


def examples(count: int, seed: int, teachers: int = 3) -> list[Example]:
    """Prompts with one expert and `teachers` teacher answers each."""
    rng = random.Random(seed)
    out = []
    for i in range(count):
        letters = question(rng)
        given = [Response(descending(letters), "expert")]
        given += [
            Response(lazy(letters) if rng.random() < TEACHER_LAZY else ascending(letters), "teacher")
            for _ in range(teachers)
        ]
        out.append(Example(letters + "=", ascending(letters), tuple(given), "sort_letters", f"embedded:{i}"))
    return out


def reward(data_source: str, solution_str: str, ground_truth: str, extra_info: object = None) -> float:
    """1 for the letters in order, in either direction."""
    return float(solution_str in (ground_truth, ground_truth[::-1]))
