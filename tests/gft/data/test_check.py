"""gft data check: what it prints, and when a run would refuse the data."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace

import pytest
from rich.console import Console

from gft import cli
from gft.checkpoint import save_model
from gft.commands.data import CheckConfig, show_example
from gft.data.files import Example, Response, load_examples
from gft.findings import duplicates
from gft.model_folder import read_without_weights
from gft.options import OptionError
from gft.policy import load_encoder, load_policy
from gft.survey import survey
from gft.usable import usable_examples

from ..rewards import kinds

ROWS = [
    {"prompt": "ab=", "completion": "ab", "solution": "ab"},
    {"prompt": "ba=", "completion": "ab", "solution": "ab"},
    {"prompt": "ab=", "completion": "ab", "solution": "ab"},  # the prompt of line 1
    {"prompt": " ", "completion": "ab", "solution": "ab"},  # a bad row
    {"prompt": "c" * 20 + "=", "completion": "ab", "solution": "ab"},  # too long
    {"prompt": "cb=", "completion": "bc" * 20, "solution": "bc"},  # its expert too
    {"prompt": "dc=", "completion": "dc", "solution": "cd"},  # a wrong expert
    {"prompt": "e<eos>d=", "completion": "de", "solution": "de"},
]
LIMITS = ["--max-prompt-tokens", "16", "--max-given-tokens", "30", "--max-new-tokens", "9"]


@pytest.fixture
def folder(policy, tmp_path):
    return save_model(policy, tmp_path / "base")


def data(tmp_path, *rows):
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def check(capsys, *arguments):
    """What the command prints; None in front if it is content, else what it ends with."""
    end = None
    try:
        cli.main(["data", "check", *map(str, arguments)])
    except SystemExit as stop:
        end = stop.code
    return end, capsys.readouterr().out


def count(said, what):
    """The number beside a finding, and of how many."""
    return tuple(map(int, re.search(rf"{what} +│ (\d+) +│ (\d+)", said).groups()))


def test_check_shows_what_a_run_would_leave_out(folder, tmp_path, capsys):
    path = data(tmp_path, *ROWS)
    end, said = check(
        capsys, path, "--model", folder, "--reward", "exact", "--own", "0", "--max-bad-fraction", "0.2", *LIMITS
    )
    assert end is None
    assert count(said, "bad rows") == (1, 8)
    assert f"{path}:4: empty prompt" in said
    assert count(said, "prompts that are empty or above 16 tokens") == (1, 7)
    assert f"{path}:5: 21 tokens" in said
    assert count(said, "given responses above 30 tokens, to be dropped") == (1, 6)
    assert f"{path}:6: 41 tokens, expert" in said
    assert count(said, "examples without any response left") == (1, 7)
    assert count(said, "prompts that stand in the data before") == (1, 7)
    assert f"{path}:3: the prompt of {path}:1" in said
    assert count(said, "experts with reward 0") == (1, 5)
    assert f"{path}:7\n" in said
    assert "note: 1 prompts spell a control token, the first: " in said
    assert "note: teacher responses in the data: 0 a group, 3 asked for" in said
    assert "a run would take 5 of 8 rows, in groups of at most 1 expert + 3 teacher + 0 own responses" in said
    assert re.search(r"prompt +│ 7 +│ 3 +│ 21 +│ 21 +│ - ", said)
    assert re.search(r"expert +│ 6 +│ 3 +│ 41 +│ 41 +│ 0.800 ", said)


def test_check_says_what_the_run_says(folder, tmp_path, capsys):
    """It calls what the run calls: the notes are the same, and so are the examples."""
    path = data(tmp_path, *ROWS[:3], *ROWS[4:])
    options = ["--model", folder, "--reward", "exact", "--own", "0", *LIMITS]
    run = CheckConfig(str(path), folder, own=0, max_prompt_tokens=16, max_given_tokens=30, reward="exact").run()
    told = []
    kept = usable_examples(load_policy(folder), load_examples(path), run, told.append)
    _, said = check(capsys, path, *options)
    assert len(told) == 5
    assert all(f"note: {note}\n" in said for note in told)
    assert f"a run would take {len(kept)} of 7 rows" in said


def test_check_marks_what_is_trained_on(folder, tmp_path, capsys):
    path = data(tmp_path, *ROWS[:2])
    _, said = check(capsys, path, "--model", folder, "--reward", "exact", "--max-new-tokens", "9")
    assert f"{path}:1, solution 'ab', its first response is the expert's:\nab=[[ab<eos>]]\n" in said
    assert "ba=[[ab<eos>]]\n" in said
    _, said = check(
        capsys, path, "--model", folder, "--reward", "exact", "--max-given-tokens", "2", "--long-given", "cut"
    )
    assert "ab=[[ab]]\n" in said  # without an end
    _, said = check(capsys, path, "--reward", "exact")
    assert "ab=[[ab]]\n" in said  # without a tokenizer there is none to show


def test_check_marks_by_colour_in_a_terminal(policy):
    page = io.StringIO()
    example = Example("ab=", "ab", (Response("ab", "expert"),), origin="f:1")
    config = CheckConfig("d.jsonl").run()
    console = Console(file=page, force_terminal=True, color_system="standard", markup=False)
    show_example(example, config, policy, console)
    assert "ab=\x1b[30;42mab<eos>\x1b[0m" in page.getvalue()
    assert "[[" not in page.getvalue()


def test_check_shows_the_ends_of_long_texts(policy, capsys):
    show_example(Example("a" * 4000 + "b" * 1000, "a"), CheckConfig("d.jsonl").run(), None, Console(markup=False))
    said = capsys.readouterr().out
    assert f"{'a' * 600} ... 3800 characters ... {'b' * 600}\n" in said


@pytest.mark.parametrize(
    ("rows", "options", "words"),
    [
        (ROWS, [], "1 of 8 rows are bad, more than the 1.00% allowed"),
        (ROWS[:2], ["--max-prompt-tokens", "2"], "none of 2 prompts has 1 to 2 tokens"),
        (ROWS[:2], ["--max-new-tokens", "99"], "a prompt of 3 tokens and a sample of 99 need 102 positions"),
        (ROWS[:2], ["--own", "0", "--experts", "0"], "2 of 2 examples have no response to train on"),
        ([{"prompt": "ab=", "completion": "ab"}], [], "1 of 1 examples have no solution to score responses with"),
        (
            [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}],
            ["--objective", "sft", "--experts", "1"],
            "no good row; the first bad one",
        ),
        ([], [], "no good row: the file is empty"),
    ],
)
def test_check_ends_with_1_where_the_run_would_refuse_the_data(rows, options, words, folder, tmp_path, capsys):
    path = data(tmp_path, *rows)
    reward = [] if "--objective" in options else ["--reward", "exact"]
    new = [] if "--max-new-tokens" in options else ["--max-new-tokens", "9"]
    end, said = check(capsys, path, "--model", folder, *reward, *new, *options)
    assert f"gft: a run would refuse {path}: " in end
    assert words in end
    assert "bad rows" in said  # the table is there all the same


def test_check_without_a_model_says_what_needs_no_tokenizer(tmp_path, capsys):
    path = data(tmp_path, *ROWS)
    end, said = check(capsys, path, "--reward", "exact", "--max-bad-fraction", "0.2")
    assert end is None
    assert count(said, "experts with reward 0") == (2, 7)
    assert re.search(r"characters +┃ number", said)
    assert re.search(r"expert +│ 7 +│ 2 ", said)
    assert "tokens, to be dropped" not in said


def test_check_names_solutions_that_the_reward_cannot_read(tmp_path, capsys):
    rows = [{"problem": "p", "answer": answer} for answer in ("4", "x + 1", r"\frac{1}{2}", r"\foo{2}", "7")]
    path = data(tmp_path, *rows)
    _, said = check(capsys, path, "--experts", "0")
    assert count(said, "solutions that number cannot read") == (3, 5)
    assert f"{path}:2: ValueError: the solution 'x + 1' is not a number: use the reward 'math' or 'exact'" in said
    _, said = check(capsys, path, "--experts", "0", "--reward", "math", "--reward-workers", "1")
    assert count(said, "solutions that math cannot read") == (1, 5)
    assert f"{path}:4: Doubt: the solution cannot be read: \\foo is not understood" in said


def test_check_names_experts_whose_reward_fails(tmp_path, capsys):
    path = data(tmp_path, *[ROWS[0] | {"prompt": f"{n}"} for n in range(5)])
    _, said = check(capsys, path, "--reward", f"exact + {kinds.__name__}:failing", "--reward-workers", "1")
    assert count(said, "experts whose reward fails") == (5, 5)
    assert f"{path}:1: {kinds.__name__}:failing: KeyError: 'boom'" in said
    assert "  and 2 more\n" in said


def test_check_puts_the_suffix_on_and_looks_at_the_first_rows(tmp_path, capsys):
    path = data(tmp_path, *ROWS[:3])
    end, said = check(capsys, path, "--reward", "exact", "--prompts", "2", "--prompt-suffix", "Sort.")
    assert end is None
    assert "ab=\n\nSort.[[ab]]\n" in said
    assert "a run would take 2 of 2 rows" in said


def test_check_asks_for_no_reward_where_the_objective_does_not(tmp_path, capsys):
    end, said = check(capsys, data(tmp_path, *ROWS[:2]), "--objective", "sft")
    assert end is None
    assert "experts with reward" not in said
    assert "solutions that" not in said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_given_tokens": 9}, "--max-given-tokens is 9, and would do nothing: tokens need --model"),
        ({"long_given": "cut"}, "--long-given is cut, and would do nothing: tokens need --model"),
        ({"prompts": 0}, "--prompts is 0; it must be at least 1"),
        ({"reward": "maths"}, "reward = 'maths' is unknown"),
        ({"objective": "sft", "limits": replace(CheckConfig("d").limits, reward_workers=2)}, "would do nothing"),
    ],
)
def test_check_refuses_options_without_effect(options, words):
    with pytest.raises(OptionError, match=words):
        CheckConfig("d.jsonl", **options)


def test_duplicates_are_of_the_whole_chat():
    user, system = ({"role": role, "content": "p"} for role in ("user", "system"))
    chats = [(user,), (system, user), (user,)]
    found = duplicates([Example(prompt, "", origin=f"f:{n}") for n, prompt in enumerate(chats)])
    assert found == ["f:2: the prompt of f:0"]


def test_load_encoder_encodes_as_the_policy_of_the_folder_without_its_weights(folder):
    whole = load_policy(folder)
    (folder / "model.safetensors").unlink()
    encoder = load_encoder(folder)
    assert encoder.end_tokens == whole.end_tokens
    assert encoder.model.name_or_path == whole.model.name_or_path
    example = [Example("ba=", "ab", (Response("ab", "expert"),))]
    config = CheckConfig("d").run()
    assert survey(encoder, example, config) == survey(whole, example, config)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("generation_config.json", {"eos_token_id": [1, 5]}, None),
        ("config.json", {"vocab_size": 7}, "the tokenizer has 29 tokens but the head 7 rows"),
        ("config.json", {"model_type": "nothing"}, "model_type 'nothing' is one that transformers"),
        ("tokenizer_config.json", {"eos_token": None}, "the tokenizer has no eos_token"),
    ],
)
def test_load_encoder_reads_and_refuses_as_load_policy(folder, name, change, words):
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    if words is None:
        assert 5 in load_encoder(folder).end_tokens
        assert read_without_weights(folder)[0].generation_config.eos_token_id == [1, 5]
        return
    with pytest.raises(ValueError, match=words):
        load_encoder(folder)
