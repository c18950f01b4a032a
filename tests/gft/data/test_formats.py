"""Formats: every accepted one becomes the same Example, and a bad row says what is wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gft.data.files import Response, load_examples
from gft.data.formats import GSM8K_INSTRUCTION

from .rows import CHAT, GROUP, GSM8K, load_one, reason, write


@pytest.mark.parametrize("name", ["data.jsonl", "data.parquet"])
def test_load_examples_reads_gsm8k(tmp_path, name):
    example = load_one(tmp_path, GSM8K, name)
    assert example.prompt == ({"role": "user", "content": f"How many?\n\n{GSM8K_INSTRUCTION}"},)
    assert example.solution == "1024"
    assert example.responses == (Response("48/2 = 24 a.\n1000+24 = 1,024\n#### 1,024", "expert"),)
    assert example.origin == f"{tmp_path / name}:1"


@pytest.mark.parametrize("answer", ["24", "#### 24\nmore", "#### many", "####", "x\n#### 1 2"])
def test_load_examples_refuses_gsm8k_answers_without_final_number(tmp_path, answer):
    assert "must end in '#### <number>'" in reason(tmp_path, {"question": "q", "answer": answer}, good=GSM8K)


@pytest.mark.parametrize("name", ["data.jsonl", "data.parquet"])
def test_load_examples_reads_groups(tmp_path, name):
    example = load_one(tmp_path, GROUP, name)
    assert example.prompt == "2+2="
    assert example.solution == "4"
    assert example.responses == (Response("4", "expert", 1.0), Response("5", "teacher", 0.0))


def test_load_examples_fills_in_sources_and_rewards(tmp_path):
    row = {
        "prompt": CHAT[:1],
        "completions": ["4", [CHAT[1]]],
        "rewards": [None, 1],
        "solution": 4,
        "data_source": "sums",
    }
    example = load_one(tmp_path, row)
    assert example.prompt == tuple(CHAT[:1])
    assert example.responses == (Response("4", "expert", None), Response("4", "expert", 1.0))
    assert (example.solution, example.data_source) == ("4", "sums")
    assert (
        load_one(tmp_path, {"prompt": "p", "completions": ["a"]} | {"solution": "a", "rewards": None})
        .responses[0]
        .reward
        is None
    )


def test_load_examples_needs_a_solution_only_where_a_reward_is_missing(tmp_path):
    base = {"prompt": "p", "completions": ["a", "b"]}
    assert load_one(tmp_path, base | {"rewards": [1, 0]}).solution == ""
    for row in (base, base | {"rewards": [1, None]}, base | {"solution": " "}, {"prompt": "p", "completions": []}):
        assert "'solution' is missing" in reason(tmp_path, row)


@pytest.mark.parametrize("name", ["data.jsonl", "data.parquet"])
@pytest.mark.parametrize(
    ("value", "text"), [(42, "42"), (42.0, "42"), (1e-05, "0.00001"), (1e16, "10000000000000000"), (-0.0, "0")]
)
def test_load_examples_writes_stored_numbers_as_people_do(tmp_path, name, value, text):
    assert load_one(tmp_path, GROUP | {"solution": value}, name).solution == text
    row = {"prompt": CHAT[:1], "reward_model": {"ground_truth": value}}
    assert load_one(tmp_path, row, name).solution == text


@pytest.mark.parametrize(("good", "missing"), [(4.0, float("nan")), ("4", "nan"), ("4", " NaN"), ("4", None)])
def test_load_examples_takes_nan_for_a_missing_solution(tmp_path, good, missing):
    rows = ({"prompt": "p", "completions": ["a"], "solution": value} for value in (good, missing))
    path = write(tmp_path, *rows, name="data.parquet")
    with pytest.raises(ValueError, match=f"{path}:2: 'solution' is missing"):
        load_examples(path)


@pytest.mark.parametrize(("value", "found"), [(True, "bool"), (float("inf"), "inf"), (1e300, "200 digits")])
def test_load_examples_refuses_solutions_that_no_answer_equals(tmp_path, value, found):
    path = write(tmp_path, GROUP | {"solution": value}, name="data.parquet")
    with pytest.raises(ValueError, match=f"{path}:1: 'solution' .*{found}"):
        load_examples(path)


def test_load_examples_keeps_empty_completions(tmp_path):
    assert load_one(tmp_path, GROUP | {"completions": ["", "5"]}).responses[0] == Response("", "expert", 1.0)
    assert load_one(tmp_path, {"prompt": "p", "completion": ""}).responses == (Response("", "expert", 1.0),)
    assert load_one(tmp_path, {"prompt": "p", "completions": [], "solution": "4"}).responses == ()  # rollouts alone


@pytest.mark.parametrize("name", ["data.jsonl", "data.parquet"])
@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "2+2=", "completion": "4"}, "2+2="),
        ({"prompt": CHAT[:1], "completion": CHAT[1:]}, tuple(CHAT[:1])),
        ({"messages": CHAT}, tuple(CHAT[:1])),
    ],
)
def test_load_examples_reads_trl_demonstrations(tmp_path, name, row, prompt):
    example = load_one(tmp_path, row, name)
    assert example.prompt == prompt
    assert example.responses == (Response("4", "expert", 1.0),)  # right by definition: nothing could score it
    assert load_one(tmp_path, row | {"solution": "4"}, name).responses == (Response("4", "expert", None),)


def test_load_examples_takes_the_last_turn_of_a_conversation(tmp_path):
    turns = [*CHAT, {"role": "user", "content": "3+3="}, {"role": "assistant", "content": "6"}]
    example = load_one(tmp_path, {"messages": turns})
    assert example.prompt == tuple(turns[:3])
    assert example.responses[0].text == "6"
    assert "must be the assistant's, found role 'user'" in reason(
        tmp_path, {"messages": turns[:3]}, good={"messages": CHAT}
    )
    assert reason(tmp_path, {"messages": CHAT[1:]}, good={"messages": CHAT}).startswith("empty prompt")


@pytest.mark.parametrize("name", ["data.jsonl", "data.parquet"])
def test_load_examples_reads_verl(tmp_path, name):
    row = {
        "data_source": "openai/gsm8k",
        "prompt": CHAT[:1],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "4"},
        "extra_info": {"answer": "2+2 = <<2+2=4>>4\n#### 4", "index": 0},
    }
    example = load_one(tmp_path, row, name)
    assert (example.prompt, example.solution, example.data_source) == (tuple(CHAT[:1]), "4", "openai/gsm8k")
    assert example.responses == (Response("2+2 = 4\n#### 4", "expert"),)
    assert load_one(tmp_path, row | {"extra_info": {"index": 0}}, name).responses == ()
    assert "'ground_truth' is missing" in reason(tmp_path, row | {"reward_model": {"style": "model"}}, good=row)


def test_load_examples_drops_null_fields_of_messages(tmp_path):
    rows = [{"messages": CHAT}, {"messages": [*CHAT[:1], CHAT[1] | {"name": "bot"}]}]
    first, _ = load_examples(write(tmp_path, *rows, name="data.parquet"))  # parquet gives "name" to all
    assert first.prompt == tuple(CHAT[:1])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"completions": ["4"]}, "'sources' must be a list with one entry per completion (1), found 2 of them"),
        ({"rewards": [1.0]}, "'rewards' must be a list with one entry per completion (2), found 1 of them"),
        ({"rewards": 1.0}, "'rewards' must be a list with one entry per completion (2), found float"),
        ({"rewards": [1.0, "good"]}, "a reward must be a finite number or null, found 'good'"),
        ({"sources": ["expert", "human"]}, "unknown source 'human': use expert, teacher, self"),
        ({"sources": ["expert", ["x"]]}, "unknown source ['x']"),
        ({"completions": "4"}, "'completions' must be a list, found str"),
        ({"completions": None}, "'completions' is missing"),
        ({"completions": ["4", 5]}, "completion must be text, found int"),
        (
            {"completions": ["4", CHAT]},
            "a completion must be text or one assistant message, found roles ['user', 'assistant']",
        ),
        ({"prompt": " \n"}, "empty prompt"),
        ({"prompt": []}, "empty prompt"),
        ({"prompt": [{"role": "user", "content": " "}]}, "empty prompt"),
        ({"prompt": [{"role": "user", "content": None}]}, "content of a message must be text, found NoneType"),
        ({"prompt": ["hello"]}, "messages must be a list of {role, content} objects"),
        ({"prompt": 4}, "prompt must be text, found int"),
        ({"prompt": "\ud800"}, "prompt holds half a surrogate pair"),
        ({"solution": ["4"], "rewards": None}, "'solution' must be text, found list"),
    ],
)
def test_load_examples_says_what_is_wrong_with_a_row(tmp_path, change, expected):
    assert reason(tmp_path, GROUP | change).startswith(expected)


WORKED = {"problem": "2+2?", "answer": "4", "solution": r"It is \boxed{3+1}, so \boxed{4}.", "level": 1}
BOXED = {"problem": "2+2?", "solution": r"\boxed{9} tries: \boxed{4}, \boxed{7}, so \boxed{4}.", "source": "x"}
USER = ({"role": "user", "content": "2+2?"},)


@pytest.mark.parametrize("name", ["data.jsonl", "data.parquet"])
def test_load_examples_reads_problems_with_an_answer(tmp_path, name):
    """MATH-500: the answer is compared, the worked solution is the expert's."""
    example = load_one(tmp_path, WORKED | {"data_source": "math"}, name)
    assert (example.prompt, example.solution, example.data_source) == (USER, "4", "math")
    assert example.responses == (Response(WORKED["solution"], "expert"),)
    bare = {"problem": "2+2?", "answer": 4}
    assert load_one(tmp_path, bare, name).responses == ()
    assert load_one(tmp_path, bare, name).solution == "4"


@pytest.mark.parametrize("missing", [None, float("nan"), "nan", " "])
def test_load_examples_reads_problems_whose_worked_solution_is_missing(tmp_path, missing):
    path = write(tmp_path, WORKED | {"solution": missing}, name="data.parquet")
    assert load_examples(path)[0].responses == ()


@pytest.mark.parametrize("name", ["data.jsonl", "data.parquet"])
def test_load_examples_takes_the_last_box_of_a_worked_solution(tmp_path, name):
    """NuminaMath-CoT: the same again in `messages` is not looked at."""
    talk = [USER[0], {"role": "assistant", "content": BOXED["solution"]}]
    example = load_one(tmp_path, BOXED | {"messages": talk}, name)
    assert (example.prompt, example.solution) == (USER, "4")
    assert example.responses == (Response(BOXED["solution"], "expert"),)


@pytest.mark.parametrize(
    ("row", "good", "words"),
    [
        ({"solution": "It is 4."}, BOXED, r"the solution must hold its answer in \boxed{}, found 'It is 4.'"),
        ({"solution": r"It is \boxed{4"}, BOXED, "the solution must hold its answer"),
        ({"solution": r"\boxed{4} \boxed{ }"}, BOXED, "the solution must hold its answer"),
        ({"solution": " "}, BOXED, "empty solution"),
        ({"problem": " "}, BOXED, "empty problem"),
        ({"problem": 4}, WORKED, "problem must be text, found int"),
        ({"answer": ""}, WORKED, "'answer' is missing"),
        ({"answer": "nan"}, WORKED, "'answer' is missing"),
        ({"answer": ["4"]}, WORKED, "'answer' must be text, found list"),
        ({"solution": ["4"]}, WORKED, "'solution' must be text, found list"),
    ],
)
def test_load_examples_says_what_is_wrong_with_a_problem(tmp_path, row, good, words):
    assert reason(tmp_path, good | row, good=good).startswith(words)


# The end of a prompt

SUFFIX = r"Put the answer within \boxed{}."


def prompts(folder, *rows, suffix=SUFFIX):
    return [e.prompt for e in load_examples(write(folder, *rows), prompt_suffix=suffix)]


def test_prompt_suffix_ends_the_users_last_message_or_a_text(tmp_path):
    ended = f"2+2?\n\n{SUFFIX}"
    assert prompts(tmp_path, WORKED) == [({"role": "user", "content": ended},)]
    assert prompts(tmp_path, {"prompt": "2+2?", "completion": "4"}) == [ended]
    system = {"role": "system", "content": "s"}
    turns = [system, USER[0], {"role": "assistant", "content": "5"}, {"role": "user", "content": "Sure?", "name": "a"}]
    (chat,) = prompts(tmp_path, {"messages": [*turns, {"role": "assistant", "content": "4"}]})
    assert chat[:3] == tuple(turns[:3])
    assert chat[3] == {"role": "user", "content": f"Sure?\n\n{SUFFIX}", "name": "a"}


def test_prompt_suffix_does_not_stand_twice(tmp_path):
    written = f"2+2? {SUFFIX}"
    assert prompts(tmp_path, {"prompt": written, "completion": "4"}, suffix=f" {SUFFIX}\n") == [written]


def test_prompt_suffix_takes_the_place_of_gsm8ks_instruction(tmp_path):
    (chat,) = prompts(tmp_path, GSM8K)
    assert chat == ({"role": "user", "content": f"How many?\n\n{SUFFIX}"},)
    (chat,) = prompts(tmp_path, GSM8K, suffix=GSM8K_INSTRUCTION)
    assert chat == ({"role": "user", "content": f"How many?\n\n{GSM8K_INSTRUCTION}"},)


def test_prompt_suffix_needs_a_message_of_the_user(tmp_path):
    rows = [{"prompt": [{"role": "system", "content": "s"}], "completion": "4"}]
    with pytest.raises(ValueError, match=r"data.jsonl:1: the chat has no message of the user, which --prompt-suffix"):
        prompts(tmp_path, *rows)


def test_prompt_suffix_is_put_on_tasks_of_reasoning_gym():
    pytest.importorskip("reasoning_gym")
    (plain,), (ended,) = (load_examples("rg:chain_sum", limit=1, prompt_suffix=suffix) for suffix in (None, SUFFIX))
    assert ended.prompt == f"{plain.prompt.rstrip()}\n\n{SUFFIX}"


@pytest.mark.skipif("GFT_GSM8K_DIR" not in os.environ, reason="GFT_GSM8K_DIR names no folder with GSM8K")
def test_load_examples_reads_all_of_gsm8k():
    folder = Path(os.environ["GFT_GSM8K_DIR"])
    for name, rows in (("train.parquet", 7473), ("test.parquet", 1319)):
        examples = load_examples(folder / name, max_bad_fraction=0.0)
        assert len(examples) == rows
        assert not any("<<" in example.responses[0].text for example in examples)
