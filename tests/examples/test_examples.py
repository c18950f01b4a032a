"""Every example runs as a script, stays short, and prints what it promises."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples"
EXAMPLES = sorted(path.name for path in FOLDER.glob("*.py"))
LINES = 40


def run(name, monkeypatch, capsys) -> str:
    monkeypatch.syspath_prepend(FOLDER)  # as `python examples/NAME.py` does
    code = None
    try:
        runpy.run_path(str(FOLDER / name), run_name="__main__")
    except SystemExit as end:
        code = end.code
    assert not code
    return capsys.readouterr().out


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_is_short_and_says_something(name, monkeypatch, capsys):
    assert (FOLDER / name).read_text().count("\n") < LINES
    assert run(name, monkeypatch, capsys).strip()


def test_policy_loss_learns_from_the_group_with_spread_only(monkeypatch, capsys):
    out = run("policy_loss.py", monkeypatch, capsys)
    assert "responses with a gradient: [0, 1, 2, 3]" in out
    assert "log-probs are nan" in out


def test_own_objective_weighs_unlikely_tokens_by_p_and_likely_ones_by_1(monkeypatch, capsys):
    rows = [tuple(map(float, line.split())) for line in run("own_objective.py", monkeypatch, capsys).splitlines()[1:]]
    (low, lowest), (high, highest) = rows[0], rows[-1]
    assert lowest == pytest.approx(-low, abs=2e-3)
    assert high > 0.9
    assert highest == pytest.approx(-1, abs=2e-3)


def test_hf_model_makes_right_responses_likelier(monkeypatch, capsys):
    lines = run("hf_model.py", monkeypatch, capsys).splitlines()
    right, wrong = zip(*((float(w[-4].rstrip(",")), float(w[-1])) for w in map(str.split, lines)), strict=True)
    assert right[-1] > right[0]
    assert wrong[-1] < wrong[0]


def test_trl_gft_learns_what_the_expert_shows(monkeypatch, capsys):
    rewards = run("trl_gft.py", monkeypatch, capsys).splitlines()[-1].split("[")[1].rstrip("]").split(", ")
    assert float(rewards[0]) < 0.1
    assert float(rewards[-1]) > 0.2


@pytest.mark.slow
def test_fsdp2_learns_on_two_processes():
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(FOLDER / "fsdp2.py")]
    environment = {**os.environ, "PYTHONPATH": str(FOLDER.parent)}
    out = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    for rank in "01":
        found = [float(x) for x in re.findall(rf"rank {rank} step \d: log p (-\d\.\d\d)", out)]
        assert len(found) == 4
        assert found[-1] > found[0] + 1


def test_gradient_check_holds_an_own_objective(monkeypatch, capsys):
    out = run("gradient_check.py", monkeypatch, capsys)
    assert "soft_gft" in out
    assert "all within 1e-10" in out


def test_gradient_check_sees_a_wrong_gradient(monkeypatch, capsys):
    """A limit that nothing can meet is not met: the exit code says so."""
    source = (FOLDER / "gradient_check.py").read_text()
    assert "LIMIT = 1e-10" in source
    monkeypatch.syspath_prepend(FOLDER)
    with pytest.raises(SystemExit) as end:
        exec(compile(source.replace("LIMIT = 1e-10", "LIMIT = 0.0"), "gradient_check.py", "exec"), {})
    assert end.value.code
    assert "NOT within" in capsys.readouterr().out
