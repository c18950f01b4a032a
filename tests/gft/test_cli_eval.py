"""gft eval --out: answers as they come, an evaluation that was killed, and what is refused."""

import json
import os
from signal import SIGKILL, SIGTERM

import pytest

from gft import cli
from gft.checkpoint import save_model
from gft.held_out import read_answers
from gft.options import option

from .faults.harness import forked, send, trap
from .faults.tiny import make_inputs

SIZES = dict(prompts=2, samples=6, batch=4, max_new_tokens=3, reward="exact", temperature=1.5)
BATCHES = 4  # 2 greedy ones, then 12 samples in 3


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    make_inputs(folder)
    return folder


def command(inputs, out, *more):
    files = ["--model", f"{inputs}/base", "--data", f"{inputs}/held-out.jsonl"]
    sizes = [word for name, value in SIZES.items() for word in (option(name), str(value))]
    return ["eval", *files, *sizes, "--out", str(out), *more]


@pytest.fixture(scope="module")
def whole(inputs, tmp_path_factory):
    """The folder of an evaluation that was not interrupted."""
    out = tmp_path_factory.mktemp("whole") / "out"
    cli.main(command(inputs, out))
    return out


def numbers(out):
    found = json.loads((out / "eval.json").read_text())
    return found["identity"], found["accuracy"]


@pytest.mark.parametrize("call", [1, 3, BATCHES])
@pytest.mark.parametrize(("signal", "code"), [(SIGKILL, -SIGKILL), (SIGTERM, os.EX_TEMPFAIL)])
def test_eval_that_was_ended_goes_on_to_the_same_bytes(call, signal, code, inputs, whole, tmp_path):
    def work():
        trap("gft.held_out.AnswerLog.add", call, send(signal))
        cli.main(command(inputs, tmp_path / "out"))

    assert forked(work, tmp_path / "log").code == code
    before = len(read_answers(tmp_path / "out" / "samples.jsonl"))
    ended = forked(lambda: cli.main(command(inputs, tmp_path / "out")), tmp_path / "log")
    assert ended.code == 0, ended.output
    assert (f"goes on behind {before} answers" in ended.output) == (before > 0)
    assert (tmp_path / "out" / "samples.jsonl").read_bytes() == (whole / "samples.jsonl").read_bytes()
    assert numbers(tmp_path / "out") == numbers(whole)


def test_eval_that_has_ended_answers_nothing_again(inputs, whole, monkeypatch, capsys):
    monkeypatch.setattr("gft.evaluate.sample", lambda *args, **kwargs: pytest.fail("it sampled"))
    kept = (whole / "samples.jsonl").read_bytes()
    cli.main(command(inputs, whole))
    assert (whole / "samples.jsonl").read_bytes() == kept
    out = capsys.readouterr().out
    for word in ("mean@6", "pass@4", "95% interval", "distinct"):
        assert word in out


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--samples", "5"], "--samples is 5, and was 6"),
        (["--seed", "1"], "--seed is 1, and was 0"),
        (["--reward", "number"], "--reward is number, and was exact"),
        (["--prompts", "1"], "the prompts of --data and --prompts are others"),
    ],
)
def test_eval_refuses_to_go_on_as_another_one(more, said, inputs, whole):
    with pytest.raises(SystemExit, match=f"gft: {said}.*holds the answers of another evaluation"):
        cli.main(command(inputs, whole, *more))


def test_eval_refuses_other_weights(inputs, whole, tmp_path, policy):
    save_model(policy, tmp_path / "other")
    with pytest.raises(SystemExit, match="the weights of --model are others"):
        cli.main(command(inputs, whole, "--model", str(tmp_path / "other")))


def test_eval_refuses_a_folder_of_something_else(inputs, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit, match=r"holds notes\.txt, and no eval\.json"):
        cli.main(command(inputs, tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_eval_tells_the_kl_to_its_base(inputs, tmp_path, capsys):
    cli.main(command(inputs, tmp_path / "out", "--base", f"{inputs}/base"))
    assert "KL to the base, nats a token" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "eval.json").read_text())["kl"]["kl"] == [0.0, 0.0, 0.0]


def test_eval_refuses_a_base_without_samples(inputs, tmp_path):
    with pytest.raises(SystemExit, match=r"--base is .* would do nothing: the KL needs --samples"):
        cli.main(command(inputs, tmp_path / "out", "--base", f"{inputs}/base", "--samples", "0"))
