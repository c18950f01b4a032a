"""The demo's rows: complete, of one run, and what the code still gives."""

import math
import statistics
from dataclasses import replace

import pytest
import torch

from benchmarks import demo as recorder
from benchmarks.record import RESULTS, append_rows, read_rows
from benchmarks.report import demo
from gft.demo import base_model
from gft.demo.compare import METHODS
from gft.settings.config import EMBEDDED
from gft.settings.parts import EvalConfig

SHARES = ("greedy", "mean_of_16")
CHECKED = {"base": "0", **dict.fromkeys(METHODS, str(EMBEDDED.evaluate.eval_every))}  # method -> step


def committed(file):
    return demo.newest(read_rows(RESULTS / file))


def disagreements(found, rows, exact):
    """What of `found` is not the row of its seed to the last digit; or, where not `exact`, which
    accuracy lies further from the mean of the seeds than four standard deviations.
    """
    wrong = []
    for row in found:
        seeds = {r["seed"]: r for r in rows if (r["method"], r["step"]) == (row["method"], row["step"])}
        expected = seeds[row["seed"]]
        for key in (*SHARES, "grad_norm") if exact else SHARES:
            if row[key] != expected[key] if exact else is_far(row[key], [r[key] for r in seeds.values()]):
                wrong.append(f"{row['method']}, step {row['step']}: {key} {row[key]}, not {expected[key]}")
    return wrong


def is_far(value, others):
    values = [float(other) for other in others]
    return abs(float(value) - statistics.mean(values)) > 4 * statistics.stdev(values)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_code_still_gives_the_recorded_numbers():
    # The base, and every method up to its first evaluation: the whole path of the demo in a quarter
    # of its time. A change of rounding shows in the norms; then run python -m benchmarks.demo.
    recorded = committed("demo.csv")[0]
    here = recorder.describe()
    exact = all(here[key] == recorded[key] for key in recorder.SAME_MACHINE)
    _, found = recorder.one_seed(0, replace(EMBEDDED, steps=EMBEDDED.evaluate.eval_every))
    assert {row["method"]: row["step"] for row in found} == CHECKED
    assert not disagreements(found, committed("demo_curves.csv"), exact)


def test_disagreements_are_found():
    rows = committed("demo_curves.csv")
    for method, step in CHECKED.items():
        (row,) = (r for r in rows if (r["seed"], r["method"], r["step"]) == ("0", method, step))
        assert not disagreements([row], rows, exact=True)
        one_more = row | {"mean_of_16": f"{float(row['mean_of_16']) + 1 / 4096:.4f}", "grad_norm": "0"}
        assert len(disagreements([one_more], rows, exact=True)) == 2
        assert not disagreements([one_more], rows, exact=False)
        assert disagreements([row | {"mean_of_16": "0.9900"}], rows, exact=False)


def test_committed_run_has_eight_seeds_of_every_method_and_its_curves_end_in_its_table():
    table, curves = committed("demo.csv"), committed("demo_curves.csv")
    assert {row["commit"] for row in table} == {row["commit"] for row in curves}
    seeds = {row["seed"] for row in table}
    assert len(seeds) >= 8
    assert {(row["seed"], row["method"]) for row in table} == {(s, m) for s in seeds for m in ("base", *METHODS)}
    ends = {(row["seed"], row["method"], row["step"]): [row[key] for key in SHARES] for row in curves}
    assert all(ends[row["seed"], row["method"], row["updates"]] == [row[key] for key in SHARES] for row in table)
    assert len(ends) == len(seeds) * (1 + len(METHODS) * EMBEDDED.steps // EMBEDDED.evaluate.eval_every)


def test_one_seed_gives_rows_that_fit_the_files(tmp_path, monkeypatch):
    monkeypatch.setattr(base_model, "PRETRAIN_STEPS", 2)
    recipe = replace(EMBEDDED, steps=2, prompts_per_step=2, evaluate=EvalConfig(1, eval_prompts=4, eval_samples=2))
    table, curves = recorder.one_seed(3, recipe)
    append_rows(tmp_path / "t.csv", [recorder.describe() | row for row in table], recorder.FIELDS)
    append_rows(tmp_path / "c.csv", [{"date": "d", "commit": "c"} | row for row in curves], recorder.CURVE_FIELDS)
    rows = read_rows(tmp_path / "t.csv")
    assert [row["method"] for row in rows] == ["base", *METHODS]
    assert all(row[name] for row in rows for name in recorder.FIELDS)
    rows = read_rows(tmp_path / "c.csv")
    steps = [(method, step) for method in METHODS for step in ("1", "2")]
    assert [(row["method"], row["step"]) for row in rows] == [("base", "0"), *steps]
    assert [bool(row["grad_norm"]) for row in rows] == [False, *[True] * len(steps)]


def test_one_seed_refuses_numbers_with_failed_rewards(monkeypatch):
    rows = {
        "GFT": [{"step": 0, "eval_greedy": 0.5, "eval_sampled": 0.5, "eval_errors": 0}, {"step": 1, "reward_errors": 2}]
    }
    monkeypatch.setattr(recorder, "compare", lambda config, console: {})
    monkeypatch.setattr(recorder, "read_curves", lambda config: rows)
    with pytest.raises(RuntimeError, match="seed 1: 2 responses"):
        recorder.one_seed(1)


def test_newest_takes_one_run_and_the_later_row_of_a_seed():
    rows = [
        {"date": date, "commit": commit, "seed": seed, "method": "GFT", "greedy": greedy}
        for date, commit, seed, greedy in (("d", "a", "0", "1"), ("d", "b", "0", "2"), ("d", "b", "0", "3"))
    ]
    assert demo.newest(rows) == rows[2:]
    assert demo.newest([]) == []


def student_t_below(x, degrees):
    """The probability of a value below x > 0, by the trapezium rule."""
    scale = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(degrees * math.pi)
    points = torch.linspace(0, x, 20_001, dtype=torch.float64)
    return 0.5 + torch.trapezoid(scale * (1 + points**2 / degrees) ** (-(degrees + 1) / 2), points).item()


@pytest.mark.parametrize("degrees", range(1, len(demo.STUDENT_T) + 1))
def test_student_t_is_right_to_its_last_digit(degrees):
    t = demo.STUDENT_T[degrees - 1]
    assert student_t_below(t - 0.0005, degrees) < 0.975 < student_t_below(t + 0.0005, degrees)


def test_interval_of_known_values_and_of_too_few():
    assert demo.interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 4.303 / math.sqrt(3)))
    with pytest.raises(ValueError, match="1 values"):
        demo.interval([1.0])
