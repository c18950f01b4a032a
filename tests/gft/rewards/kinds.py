"""Reward functions of every kind that is called, or refused. Workers import this module."""

from __future__ import annotations

from typing import Any


def verl(data_source, solution_str, ground_truth, extra_info=None):
    return float([data_source, solution_str, ground_truth] == ["src", "text", "42"] and extra_info["truncated"])


def verl_by_name(*, solution_str, ground_truth):
    return float(solution_str == "text" and ground_truth == "42")


def verl_all(solution_str, **others):
    return float(set(others) == {"data_source", "ground_truth", "extra_info"})


def four(a, b, c, d):
    return float([a, b, c] == ["src", "text", "42"])


def trl_text(completions, prompts, solution, ground_truth, answer, **columns):
    """For a text prompt: completions are texts."""
    given = [completions, prompts, solution, ground_truth, answer, columns["data_source"]]
    return [float(given == [["text"], ["p"], ["42"], ["42"], ["42"], ["src"]])]


def trl_chat(completions, **columns):
    """For a chat: completions are lists of one message."""
    return [
        float(
            completions == [[{"role": "assistant", "content": "text"}]] and columns["prompts"][0][0]["role"] == "user"
        )
    ]


def trl_logs(completions, solution, log_extra=None, log_metric=None):
    log_extra("solution", solution)
    log_metric(name="mean", value=1.0)
    return (0.5,)


def trl_none(completions, **columns):
    return [None]


def trl_some(completions, **columns):
    """Has a say on long texts only."""
    return [1.0 if len(text) > 4 else None for text in completions]


def trl_two(completions, **columns):
    return [1.0, 2.0]


def trl_number(completions, **columns):
    return 1.0


def trl_inner(completions, **columns):
    return [[1.0]]


def trl_tokens(completion_ids, **columns):
    return [1.0]


def trl_column(completions, target, **columns):
    return [1.0]


def verl_column(solution_str, ground_truth, method):
    return 1.0


def two(text, solution):
    return 1.0


def named(**columns):
    return 1.0


def length(data_source, solution_str, ground_truth, extra_info: Any = None):
    return len(solution_str)


def failing(completions, **columns):
    raise KeyError("boom")


class Grader:
    """A callable that is no function, as TRL's own factories make them."""

    def __call__(self, completions, **columns):
        return [0.25]


grader = Grader()
