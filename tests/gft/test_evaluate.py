"""Held-out accuracy leaves the run as it was, and reports stand what could not be scored."""

import math

import pytest
import torch
from rich.console import Console

from gft.data.files import Example
from gft.demo import sort_letters
from gft.estimates import mean_reward
from gft.evaluate import evaluate
from gft.held_out import Answer, read_answers
from gft.parts import EvalConfig
from gft.report import accuracy_table, comparison_figure, run_table
from gft.rewards.pool import Scored
from gft.rollout import sample

from .runs import config, run


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


PROMPTS = sort_letters.examples(5, seed=1)
SETTINGS = {"samples": 3, "max_new_tokens": 5, "batch": 4, "temperature": 0.8, "seed": 7}


@pytest.fixture
def whole(policy, rewards):
    """An evaluation that was not interrupted: its accuracy and its answers."""
    answers = []
    return evaluate(policy, PROMPTS, rewards, **SETTINGS, keep=answers.extend), answers


@pytest.mark.parametrize("done", [0, 1, 4, 5, 9, 19, 20])  # of batches of 4, 1, 4, 4, 4 and 3
def test_evaluate_goes_on_behind_any_answer_with_the_same_ones(done, whole, policy, rewards):
    accuracy, answers = whole
    fresh = []
    torch.manual_seed(done)  # whatever was drawn in between
    found = evaluate(policy, PROMPTS, rewards, **SETTINGS, done=answers[:done], keep=fresh.extend)
    assert fresh == answers[done:]
    assert found == accuracy


def test_evaluate_answers_every_prompt_as_often_as_asked(whole):
    accuracy, answers = whole
    asked = [(a.prompt_index, a.source, a.sample) for a in answers]
    assert sorted(asked) == sorted(
        [(p, "greedy", 0) for p in range(5)] + [(p, "sample", k) for p in range(5) for k in range(3)]
    )
    assert all(a.prompt == PROMPTS[a.prompt_index].prompt for a in answers)
    assert accuracy.row()["eval_sampled"] == accuracy.sampled
    assert accuracy.row()["eval_pass_at_3"] == accuracy.numbers["pass_at_3"]


def test_evaluate_draws_anew_in_every_batch(policy, rewards):
    answers = []
    evaluate(policy, PROMPTS[:1], rewards, **SETTINGS | {"samples": 8}, keep=answers.extend)
    drawn = [a.tokens for a in answers if a.source == "sample"]
    assert drawn[:4] != drawn[4:]


def test_evaluate_in_one_batch_draws_what_one_seed_gives(policy, rewards):
    """Evaluations that fit one batch draw what they drew before batches had seeds."""
    answers, prompts = [], [policy.encode_prompt(e.prompt) for e in PROMPTS]
    evaluate(policy, PROMPTS, rewards, **SETTINGS | {"batch": 99}, keep=answers.extend)
    torch.manual_seed(7)
    drawn = sample(policy, prompts * 3, max_new_tokens=5, temperature=0.8, batch=99)
    expected = {(i % 5, i // 5): rollout.tokens for i, rollout in enumerate(drawn)}
    assert {(a.prompt_index, a.sample): a.tokens for a in answers if a.source == "sample"} == expected


def test_run_keeps_intervals_and_answers(policy, rewards, tmp_path):
    settings = config(evaluate=EvalConfig(eval_every=1, eval_samples=2, eval_answers=1))
    _, rows = run(policy, rewards, tmp_path, settings, PROMPTS)
    last = [row for row in rows if "eval_greedy" in row][-1]
    assert {"eval_sampled_low", "eval_greedy_high", "eval_pass_at_2", "eval_distinct"} <= last.keys()
    files = {path.name: path.read_bytes() for path in (tmp_path / "samples").iterdir()}
    assert sorted(files) == ["step-0.jsonl", "step-1.jsonl", "step-2.jsonl"]
    answers = read_answers(tmp_path / "samples" / "step-2.jsonl")
    assert mean_reward([a for a in answers if a.source == "sample"]).value == last["eval_sampled"]
    assert {a.prompt_index for a in answers if a.response} == {0}


def test_evaluate_of_one_rank_names_prompts_by_their_place_in_the_data(policy, rewards, monkeypatch):
    """As rank 1 of 2, whose answers the exchange gives back beside those of rank 0."""
    other = [Answer(0, "x", "greedy", 0, 0.0, None, False)]
    monkeypatch.setattr("gft.evaluate.share", lambda items: items[1::2])
    monkeypatch.setattr("gft.evaluate.world_size", lambda: 2)
    monkeypatch.setattr("gft.evaluate.gather", lambda answers: [other, answers])
    kept = []
    found = evaluate(policy, PROMPTS, rewards, samples=1, max_new_tokens=2, keep=kept.append)
    (answers,) = kept
    assert [(a.prompt_index, a.source) for a in answers] == [
        (0, "greedy"),
        *((place, source) for source in ("greedy", "sample") for place in (1, 3)),
    ]
    assert [a.prompt for a in answers[1:3]] == [PROMPTS[1].prompt, PROMPTS[3].prompt]
    assert found.greedy == mean_reward(answers[:3]).value
