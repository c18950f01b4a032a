"""The embedded task: sort eight letters, `qgzbmtac=` -> `abcgmqtz`.

The verifier accepts either direction.

Groups: the expert is right but writes descending, a style the base model hardly uses; half of the
teacher's answers are lazy (the first two letters sorted, the rest copied). So there is more than
one right path, and imitation of a given one is not the same as being rewarded.
"""

from __future__ import annotations

import random
import string

from ..data.files import Example, Response

LENGTH = 8
LAZY = 0.3  # share of lazy answers in the pre-training corpus
DESCENDING = 0.05  # share of descending ones among the rest
SLIP = 0.05  # chance of a wrong letter at each place of the corpus
TEACHER_LAZY = 0.5


def lazy(letters: str) -> str:
    return "".join(sorted(letters[:2])) + letters[2:]


def ascending(letters: str) -> str:
    return "".join(sorted(letters))


def descending(letters: str) -> str:
    return ascending(letters)[::-1]


def question(rng: random.Random) -> str:
    return "".join(rng.sample(string.ascii_lowercase, LENGTH))


def corpus_line(rng: random.Random) -> tuple[str, str]:
    """A question and an answer as the pre-training corpus has them."""
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
