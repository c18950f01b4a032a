"""The task: who writes what, and what the verifier takes."""

import random

import pytest

from gft.demo.sort_letters import LAZY, corpus_line, examples, lazy, reward


@pytest.mark.parametrize(
    ("answer", "value"), [("abcd", 1.0), ("dcba", 1.0), ("abdc", 0.0), ("abc", 0.0), ("abcdd", 0.0), ("", 0.0)]
)
def test_reward_takes_either_direction_and_nothing_else(answer, value):
    assert reward("sort_letters", answer, "abcd") == value


def test_examples_have_a_right_expert_and_teachers_of_whom_half_are_lazy():
    found = examples(400, seed=0)
    experts = [(r, e) for e in found for r in e.responses if r.source == "expert"]
    teachers = [(r, e) for e in found for r in e.responses if r.source == "teacher"]
    assert (len(experts), len(teachers)) == (400, 1200)
    assert all(r.text == e.solution[::-1] == "".join(sorted(e.prompt[:-1], reverse=True)) for r, e in experts)
    right = [r.text == e.solution for r, e in teachers]
    assert all(ok or r.text == lazy(e.prompt[:-1]) for ok, (r, e) in zip(right, teachers, strict=True))
    assert sum(right) / len(right) == pytest.approx(0.5, abs=0.05)


def test_examples_follow_the_seed():
    assert examples(5, seed=1) == examples(5, seed=1)
    assert not {e.prompt for e in examples(50, seed=0)} & {e.prompt for e in examples(50, seed=1)}


def test_corpus_is_of_mixed_quality():
    # A slip at none of the eight letters: 0.95 + 0.05 / 8 a letter, to the power 8.
    rng = random.Random(0)
    lines = [corpus_line(rng) for _ in range(4000)]
    clean = (0.95 + 0.05 / 8) ** 8
    share = lambda write: sum(write(q[:-1]) == a for q, a in lines) / len(lines)  # noqa: E731
    assert share(lambda letters: "".join(sorted(letters))) == pytest.approx(0.665 * clean, abs=0.03)
    assert share(lambda letters: "".join(sorted(letters, reverse=True))) == pytest.approx(0.035 * clean, abs=0.015)
    assert share(lazy) == pytest.approx(LAZY * clean, abs=0.03)
