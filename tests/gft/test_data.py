"""Data files: every accepted format becomes the same Example, and a bad row is named, counted and
never dropped in silence.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from gft.data.files import Example, Response, load_examples, reasoning_gym_examples
from gft.data.formats import GSM8K_INSTRUCTION

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

GROUP = {
    "prompt": "2+2=",
    "completions": ["4", "5"],
    "sources": ["expert", "teacher"],
    "rewards": [1.0, 0.0],
    "solution": "4",
}
GSM8K = {"question": "How many?", "answer": "48/2 = <<48/2=24>>24 a.\n1000+24 = <<1000+24=1024>>1,024\n#### 1,024"}
CHAT = [{"role": "user", "content": "2+2="}, {"role": "assistant", "content": "4"}]


def write(folder: Path, *rows, name: str = "data.jsonl") -> Path:
    """A .jsonl of rows (text is written as it is), or a .parquet."""
    path = folder / name
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    else:
        path.write_text(
            "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
        )
    return path


def load_one(folder: Path, row, name: str = "data.jsonl") -> Example:
    (example,) = load_examples(write(folder, row, name=name))
    return example


def reason(folder: Path, row, good=GROUP) -> str:
    """Why `row` is bad, beside one good row that decides the format."""
    with pytest.raises(ValueError, match="1 of 2 rows are bad") as caught:
        load_examples(write(folder, good, row))
    return str(caught.value).partition("data.jsonl:2: ")[2]


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


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"prompt": ', "invalid JSON: Expecting value"),
        ("[1, 2]", "a row must be an object, found list"),
        ('{"prompt": "p", "completions": ["a"], "rewards": [NaN]}', "NaN is not JSON"),
        ('{"prompt": "p", "completions": ["a"], "rewards": [-Infinity]}', "-Infinity is not JSON"),
        (
            '{"prompt": "p", "completions": ["a"], "rewards": [1e999]}',
            "a reward must be a finite number or null, found inf",
        ),
        ('{"prompt": "p", "prompt": "q", "completions": ["a"]}', "duplicate key 'prompt'"),
        ('{"prompt": [{"role": "user", "role": "x"}], "completions": []}', "duplicate key 'role'"),
        ('{"completions": ["a"]}', "'prompt' is missing"),
        ("[" * 100_000, "invalid JSON: "),
    ],
)
def test_load_examples_refuses_lines_that_are_no_rows(tmp_path, line, expected):
    assert reason(tmp_path, line).startswith(expected)


def test_load_examples_refuses_bytes_that_are_not_utf8(tmp_path):
    path = write(tmp_path, GROUP)
    path.write_bytes(path.read_bytes() + b'{"prompt": "\xff"}\n')
    with pytest.raises(ValueError, match=r"data.jsonl:2: invalid JSON: 'utf-8' codec can't decode"):
        load_examples(path)


def test_load_examples_reads_past_a_byte_order_mark_and_blank_lines(tmp_path):
    path = write(tmp_path, "", GROUP, "  ", GROUP | {"prompt": "a\u2028b"})  # U+2028 ends no line of JSON
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().lstrip(b"\n"))
    assert [example.origin.rpartition(":")[2] for example in load_examples(path)] == ["1", "3"]


def test_load_examples_refuses_nan_in_parquet(tmp_path):
    path = write(tmp_path, GROUP, GROUP | {"rewards": [math.nan, 0.0]}, name="data.parquet")
    with pytest.raises(ValueError, match=r"data.parquet:2: a reward must be a finite number or null, found nan"):
        load_examples(path)


def test_load_examples_warns_of_bad_rows_below_the_threshold(tmp_path, capsys):
    path = write(tmp_path, *[GROUP] * 93, *["{}"] * 7)
    examples = load_examples(path, max_bad_fraction=0.07)
    assert len(examples) == 93
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"warning: {path}:94: 'prompt' is missing"
    assert lines[-1] == f"warning: {path}: 7 of 100 rows are bad and were left out"
    assert len(lines) == 6
    with pytest.raises(ValueError, match=r"7 of 100 rows are bad, more than the 6\.90% allowed"):
        load_examples(path, max_bad_fraction=0.069)


def test_load_examples_counts_rows_before_the_format_is_known(tmp_path, capsys):
    assert len(load_examples(write(tmp_path, {"text": "x"}, GROUP), max_bad_fraction=0.5)) == 1
    assert "data.jsonl:1: unknown columns text" in capsys.readouterr().err


def test_load_examples_lists_columns_found_and_accepted(tmp_path):
    for name in ("data.jsonl", "data.parquet"):
        with pytest.raises(
            ValueError, match=r"unknown columns id, text. Accepted: prompt \+ completions; .*question \+ answer\."
        ):
            load_examples(write(tmp_path, {"text": "x", "id": 1}, name=name))


def test_load_examples_refuses_files_without_a_good_row(tmp_path):
    with pytest.raises(ValueError, match="no good row: the file is empty"):
        load_examples(write(tmp_path))
    with pytest.raises(ValueError, match=r"no good row; the first bad one: .*data.jsonl:1: invalid JSON"):
        load_examples(write(tmp_path, "{"), max_bad_fraction=1.0)


def test_load_examples_refuses_unknown_broken_and_missing_files(tmp_path):
    with pytest.raises(ValueError, match=r"unknown extension '.csv': give a .jsonl or .parquet file"):
        load_examples(tmp_path / "data.csv")
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        load_examples(tmp_path / "none.jsonl")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 is not enough")
    with pytest.raises(ValueError, match="not a readable parquet file"):
        load_examples(tmp_path / "broken.parquet")


def test_load_examples_stops_at_the_limit(tmp_path):
    path = write(tmp_path, GROUP, "{}", GROUP, GROUP, "{", "{")
    assert [e.origin[-1] for e in load_examples(path, limit=2, max_bad_fraction=0.5)] == ["1", "3"]
    with pytest.raises(ValueError, match="limit = 0"):
        load_examples(path, limit=0)


def test_reasoning_gym_examples_repeat_with_the_seed():
    pytest.importorskip("reasoning_gym")
    first, again, other = (reasoning_gym_examples("leg_counting", 3, seed) for seed in (1, 1, 2))
    assert first == again != other
    assert [example.responses for example in first] == [(Response(example.solution, "expert"),) for example in first]
    assert first[0].data_source == "reasoning_gym/leg_counting"
    assert load_examples("rg:leg_counting", limit=3) == reasoning_gym_examples("leg_counting", 3, seed=0)
    with pytest.raises(ValueError, match=r"rg:leg_count: reasoning-gym has no such task; it has .*leg_counting"):
        load_examples("rg:leg_count")


@pytest.mark.skipif("GFT_GSM8K_DIR" not in os.environ, reason="GFT_GSM8K_DIR names no folder with GSM8K")
def test_load_examples_reads_all_of_gsm8k():
    folder = Path(os.environ["GFT_GSM8K_DIR"])
    for name, rows in (("train.parquet", 7473), ("test.parquet", 1319)):
        examples = load_examples(folder / name, max_bad_fraction=0.0)
        assert len(examples) == rows
        assert not any("<<" in example.responses[0].text for example in examples)


def test_load_examples_of_a_task_differ_with_the_seed():
    """Held-out entries are made from a distant seed: entry i comes from seed + i, so near seeds
    share entries.
    """
    pytest.importorskip("reasoning_gym")
    trained = {e.prompt for e in load_examples("rg:chain_sum", limit=20)}
    held_out = {e.prompt for e in load_examples("rg:chain_sum", limit=20, seed=1_000_003)}
    assert len(trained) == len(held_out) == 20
    assert not trained & held_out
