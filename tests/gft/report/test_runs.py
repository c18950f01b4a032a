"""What a killed process leaves is read as far as it can be."""

import math

import pytest

from gft.options import OptionError
from gft.report.lines import MOST_POINTS, Point, lines_of, pass_lines, thinned
from gft.report.panels import PANELS, Panel
from gft.report.runs import Run, read_runs

from .folders import answer, evaluation, make_evaluation, make_run, steps

LOSS = Panel("s", "loss", "", {"loss": "loss"})


def run_of(rows, name="a"):
    return Run(name, None, rows)


@pytest.mark.parametrize("tail", [b'{"step": 3, "lo', b"\xff\xfe\n", b"[]\n", b"null\n", b'{"loss": 1}\n', b"[" * 9999])
def test_read_runs_stands_a_line_that_is_none(tail, tmp_path):
    (run,) = read_runs([make_run(tmp_path / "a", steps(2), tail=tail)])
    assert (run.step, run.unread) == (2, 1)
    assert run.state == "2 of 9 updates"


def test_read_runs_takes_the_last_word_on_a_step(tmp_path):
    rows = [{"step": 2, "loss": 1.0}, {"step": 1, "loss": 5.0}, {"step": 2, "loss": 3.0}, evaluation(2, 0.5)]
    (run,) = read_runs([make_run(tmp_path / "a", rows)])
    assert run.series("loss") == [(1, 5.0), (2, 3.0)]
    assert run.evaluated == [2]


def test_read_runs_of_a_folder_of_runs_names_them_apart(tmp_path):
    for name in ("x/gft", "y/gft", "y/sft"):
        make_run(tmp_path / name, steps(1))
    (tmp_path / "y" / "results.csv").write_text("")
    assert [run.name for run in read_runs([tmp_path / "y"])] == ["gft", "sft"]
    assert [run.name for run in read_runs([tmp_path / "x", tmp_path / "y"])] == ["x/gft", "y/gft", "y/sft"]
    assert [run.name for run in read_runs([tmp_path / "x", tmp_path / "x"])] == ["gft"]  # told once


def test_read_runs_refuses_what_is_no_run(tmp_path):
    with pytest.raises(OptionError, match=r"holds neither metrics\.jsonl of gft train nor eval\.json of gft eval"):
        read_runs([tmp_path])
    with pytest.raises(OptionError, match=r"is no folder with metrics\.jsonl"):
        read_runs([tmp_path / "nothing"])


def test_read_runs_makes_an_evaluation_one_row(tmp_path):
    answers = [answer(0, 1.0), answer(0, 0.0, sample=1), answer(1, 1.0), answer(1, 1.0, sample=1)]
    (run,) = read_runs([make_evaluation(tmp_path / "e", answers)])
    assert run.estimate("sampled").value == 0.75
    assert run.last("base_kl_token") == 0.5
    assert run.is_evaluation


def test_lines_have_gaps_where_a_value_is_missing():
    rows = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": None}, {"step": 3, "loss": math.inf}, {"step": 4, "loss": 2}]
    (line,) = lines_of(LOSS, [run_of(rows)])
    assert line.points == [Point(1, 1.0), Point(2, None), Point(3, None), Point(4, 2.0)]
    assert lines_of(LOSS, [run_of([{"step": 1, "loss": "x"}, {"step": 2, "loss": 10**400}])]) == []


def test_lines_of_runs_differ_in_hue_and_mark_and_numbers_in_dash():
    rewards = next(panel for panel in PANELS if panel.title == "Reward by source")
    runs = [run_of(steps(3), "a"), run_of(steps(3), "b")]
    looks = {line.label: (line.hue, line.mark, line.dash) for line in lines_of(rewards, runs)}
    assert looks == {"a: expert": (0, 0, 0), "a: own": (0, 0, 1), "b: expert": (1, 1, 0), "b: own": (1, 1, 1)}
    assert {(line.hue, line.mark, line.dash) for line in lines_of(rewards, runs[:1])} == {(0, 0, 0), (1, 1, 1)}


def test_lines_of_long_runs_are_means_and_keep_their_end():
    rows = [{"step": s, "loss": float(s % 2)} for s in range(1, 2001)]
    (line,) = lines_of(LOSS, [run_of(rows)])
    assert len(line.points) <= MOST_POINTS + 1
    assert line.points[-1] == Point(2000, 0.0)
    assert all(abs(p.y - 0.5) < 0.01 for p in line.mean)
    assert thinned([Point(1, None)] * 1000)[0].y is None


def test_running_mean_is_of_the_values_that_there_are():
    rows = [{"step": s, "loss": None if s == 50 else float(s)} for s in range(1, 101)]
    (line,) = lines_of(LOSS, [run_of(rows)])  # a window of five
    found = {p.x: p.y for p in line.mean}
    assert found[20] == 20.0
    assert found[50] is None
    assert found[49] == pytest.approx((47 + 48 + 49 + 51) / 4)
    assert found[1] == pytest.approx((1 + 2 + 3) / 3)


def test_counts_that_are_all_zero_and_numbers_that_are_missing_have_no_picture():
    run = run_of([*steps(3, reward_errors=0), evaluation(3, 0.5)])
    drawn = {panel.title for panel in PANELS if lines_of(panel, [run])}
    assert {"Reward by source", "Entropy", "Greedy"} <= drawn
    assert not {"Failures", "KL to the reference", "Gap of sampler and trainer"} & drawn
    assert lines_of(next(p for p in PANELS if p.title == "Failures"), [run_of(steps(3, reward_errors=1))])


def test_pass_lines_are_over_the_logarithm_of_k():
    (line,) = pass_lines([run_of([evaluation(0, 0.1), evaluation(5, 0.5)])])
    assert line.points == [Point(0, 0.5, 0.4, 0.6), Point(1, 0.5, 0.4, 0.6)]
