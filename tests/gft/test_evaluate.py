"""Held-out accuracy leaves the run as it was, and reports stand what could not be scored."""

import math

import pytest
import torch
from rich.console import Console

from gft.data.files import Example
from gft.demo import sort_letters
from gft.evaluate import evaluate
from gft.report import accuracy_table, comparison_figure, run_table
from gft.rewards.pool import Scored


def test_evaluate_repeats_and_leaves_the_random_state(policy, rewards):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    first = evaluate(policy, sort_letters.examples(3, seed=1), rewards, samples=2, max_new_tokens=9)
    assert torch.equal(torch.rand(4), expected)
    assert first == evaluate(policy, sort_letters.examples(3, seed=1), rewards, samples=2, max_new_tokens=9)
    assert (first.samples, first.errors) == (2, 0)


def test_evaluate_leaves_failed_checks_out_of_the_mean(policy):
    class Half:
        def score(self, items, truncated):
            return [Scored(1.0, None) if i % 2 else Scored(None, "boom") for i in range(len(items))]

    accuracy = evaluate(policy, sort_letters.examples(4, seed=1), Half(), samples=2, max_new_tokens=2)
    assert accuracy[:4] == (1.0, 1.0, 2, 6)


def test_evaluate_refuses_examples_without_a_solution(policy, rewards):
    with pytest.raises(ValueError, match="1 of 2 held-out examples have no solution to score with, the first: f:2"):
        evaluate(policy, [Example("ba=", "ab"), Example("ca=", "", origin="f:2")], rewards)


def test_tables_and_figures_stand_scores_that_are_missing(tmp_path):
    rows = [{"step": 1, "loss": 0.5}, {"step": 1, "eval_greedy": None, "eval_sampled": 0.25}]
    console = Console(record=True, width=100)
    console.print(run_table(rows, "t"))
    console.print(accuracy_table([("m", {"greedy": math.nan, "sampled": 0.5})], "t", 2))
    text = console.export_text()
    assert "greedy -" in text
    assert "sampled 25.0%" in text
    assert comparison_figure({"m": rows}, tmp_path / "f.png", 2).exists()
