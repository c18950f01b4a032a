"""Examples, and how a row of each accepted format becomes one.

A format is one function and one line of `FORMATS`. A row that does not fit raises BadRow, which
says what is wrong with it.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

from ..answers import MARKER, is_missing, is_number, last_box, marked_number, number_text, without_calculator

Source = Literal["expert", "teacher", "self"]
Row = dict[str, Any]

GSM8K_INSTRUCTION = f"Give the final answer on the last line as `{MARKER} <number>`."


@dataclass(frozen=True)
class Response:
    """One response to a prompt. Its text may be empty.

    reward None means that the reward function scores it.
    """

    text: str
    source: Source
    reward: float | None = None


@dataclass(frozen=True)
class Example:
    """One prompt with the responses given for it.

    Args:
        prompt: text, or chat messages {"role", "content"}.
        solution: what the reward function compares with; "" if there is none.
        responses: the given ones (expert, teacher).
        data_source: where the prompt comes from, for reward functions that tell sources apart.
        origin: "file:line" (parquet: file:row, from 1), for error messages.
    """

    prompt: str | tuple[dict, ...]
    solution: str
    responses: tuple[Response, ...] = ()
    data_source: str = ""
    origin: str = ""


class BadRow(ValueError):
    """What is wrong with one row."""


# Formats: one function from a row to an Example each


def _gsm8k(row: Row, origin: str) -> Example:
    question, answer = _nonblank(row["question"], "question"), _nonblank(row["answer"], "answer")
    solution = marked_number(answer)
    if solution is None:
        raise BadRow(f"the answer must end in '{MARKER} <number>', found {answer[-40:]!r}")
    prompt = ({"role": "user", "content": f"{question}\n\n{GSM8K_INSTRUCTION}"},)
    expert = Response(without_calculator(answer), "expert")
    return Example(prompt, solution, (expert,), "openai/gsm8k", origin)


def _worked(row: Row, origin: str) -> Example:
    """A problem with its answer and, if there is one, a worked solution: the expert's response."""
    worked = _solution(row, "solution", required=False)
    responses = (Response(worked, "expert"),) if worked.strip() else ()
    return Example(_problem(row), _solution(row, "answer", required=True), responses, _source_of(row), origin)


def _boxed(row: Row, origin: str) -> Example:
    r"""A problem with a worked solution whose answer is its last \boxed{}."""
    worked = _nonblank(row["solution"], "solution")
    answer = last_box(worked)
    if not answer:
        raise BadRow(rf"the solution must hold its answer in \boxed{{}}, found {worked[-40:]!r}")
    return Example(_problem(row), answer, (Response(worked, "expert"),), _source_of(row), origin)


def _problem(row: Row) -> tuple[dict, ...]:
    return ({"role": "user", "content": _nonblank(row["problem"], "problem")},)


def _group(row: Row, origin: str) -> Example:
    completions = row["completions"]
    if not isinstance(completions, list):
        raise BadRow(f"'completions' must be a list, found {type(completions).__name__}")
    sources = _one_each(row, "sources", "expert", len(completions))
    rewards = [_reward(value) for value in _one_each(row, "rewards", None, len(completions))]
    for source in sources:
        if source not in get_args(Source):
            raise BadRow(f"unknown source {reprlib.repr(source)}: use {', '.join(get_args(Source))}")
    responses = tuple(map(Response, map(_response_text, completions), sources, rewards))
    all_given = bool(rewards) and None not in rewards
    return Example(
        _prompt(row["prompt"]), _solution(row, "solution", required=not all_given), responses, _source_of(row), origin
    )


def _prompt_completion(row: Row, origin: str) -> Example:
    return _demonstration(row, _prompt(row["prompt"]), _response_text(row["completion"]), origin)


def _conversation(row: Row, origin: str) -> Example:
    messages = _messages(row["messages"])
    if messages[-1]["role"] != "assistant":
        raise BadRow(f"the last message must be the assistant's, found role {reprlib.repr(messages[-1]['role'])}")
    return _demonstration(row, _prompt(list(messages[:-1])), messages[-1]["content"], origin)


def _demonstration(row: Row, prompt: str | tuple[dict, ...], text: str, origin: str) -> Example:
    """A demonstration as the expert's response.

    Without a solution nothing can score it. It is then right by definition, and has reward 1.
    """
    solution = _solution(row, "solution", required=False)
    return Example(prompt, solution, (Response(text, "expert", None if solution else 1.0),), _source_of(row), origin)


def _verl(row: Row, origin: str) -> Example:
    model, extra = row["reward_model"], row.get("extra_info")
    if not isinstance(model, dict):
        raise BadRow(f"'reward_model' must be an object with 'ground_truth', found {type(model).__name__}")
    source = _source_of(row)
    expert = extra.get("answer") if isinstance(extra, dict) else None
    responses: tuple[Response, ...] = ()
    if expert is not None:
        text = _response_text(expert)
        responses = (Response(without_calculator(text) if "gsm8k" in source else text, "expert"),)
    return Example(_prompt(row["prompt"]), _solution(model, "ground_truth", required=True), responses, source, origin)


FORMATS: dict[tuple[str, ...], Callable[[Row, str], Example]] = {
    # required columns: format             optional columns
    ("prompt", "completions"): _group,  # sources, rewards, solution, data_source
    ("prompt", "reward_model"): _verl,  # data_source, extra_info
    ("prompt", "completion"): _prompt_completion,  # TRL; solution, data_source
    ("problem", "answer"): _worked,  # MATH-500 and other test sets; solution, data_source
    ("problem", "solution"): _boxed,  # NuminaMath-CoT; data_source. Its `messages` say the same again
    ("messages",): _conversation,  # TRL; solution, data_source
    ("question", "answer"): _gsm8k,
}


def recognise(row: Row) -> Callable[[Row, str], Example]:
    """The format of a file: the first of FORMATS whose required columns the row has.

    Raises:
        BadRow: there is none.
    """
    for required, convert in FORMATS.items():
        if row.keys() >= set(required):
            return partial(_converted, required, convert)
    raise BadRow(f"unknown columns {', '.join(sorted(row)) or '(none)'}")


def with_suffix(example: Example, suffix: str) -> Example:
    """The example with `suffix` at the end of its prompt: of a text, or of the user's last message.

    It takes the place of GSM8K's own instruction, and does not stand twice where the data have it.

    Raises:
        BadRow: the chat has no message of the user.
    """
    if isinstance(example.prompt, str):
        return replace(example, prompt=_ending_in(example.prompt, suffix))
    messages = list(example.prompt)
    place = next((i for i in reversed(range(len(messages))) if messages[i]["role"] == "user"), None)
    if place is None:
        raise BadRow("the chat has no message of the user, which --prompt-suffix could be put on")
    messages[place] = messages[place] | {"content": _ending_in(messages[place]["content"], suffix)}
    return replace(example, prompt=tuple(messages))


def _ending_in(text: str, suffix: str) -> str:
    text = text.removesuffix(GSM8K_INSTRUCTION).rstrip()
    return text if text.endswith(suffix.strip()) else f"{text}\n\n{suffix.strip()}"


def _converted(required: tuple[str, ...], convert: Callable[[Row, str], Example], row: Row, origin: str) -> Example:
    for name in required:
        if row.get(name) is None:
            raise BadRow(f"{name!r} is missing")
    return convert(row, origin)


# Fields


def _utf8(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise BadRow(f"{what} must be text, found {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadRow(f"{what} holds half a surrogate pair, which no tokenizer takes") from error
    return value


def _nonblank(value: Any, what: str) -> str:
    if not _utf8(value, what).strip():
        raise BadRow(f"empty {what}")
    return value


def _messages(value: Any) -> tuple[dict, ...]:
    """Chat messages without their null fields: parquet gives every message the fields of all."""
    if not isinstance(value, list) or not value or not all(isinstance(message, dict) for message in value):
        raise BadRow("messages must be a list of {role, content} objects that is not empty")
    for message in value:
        _nonblank(message.get("role"), "role of a message")
        _utf8(message.get("content"), "content of a message")
    return tuple({key: field for key, field in message.items() if field is not None} for message in value)


def _prompt(value: Any) -> str | tuple[dict, ...]:
    if not isinstance(value, list):
        return _nonblank(value, "prompt")
    if not any(message["content"].strip() for message in (_messages(value) if value else ())):
        raise BadRow("empty prompt")
    return _messages(value)


def _response_text(value: Any) -> str:
    """Text, or the one assistant message of a list.

    Empty text is a response too: the end token alone.
    """
    if not isinstance(value, list):
        return _utf8(value, "completion")
    messages = _messages(value)
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        roles = reprlib.repr([message["role"] for message in messages])
        raise BadRow(f"a completion must be text or one assistant message, found roles {roles}")
    return messages[0]["content"]


def _solution(row: Row, name: str, *, required: bool) -> str:
    value = row.get(name)
    try:
        value = number_text(value) if is_number(value) else value
    except ValueError as error:
        raise BadRow(f"{name!r} is {error}") from error
    value = "" if value is None or is_missing(value) else _utf8(value, f"{name!r}")
    if required and not value.strip():
        raise BadRow(f"{name!r} is missing, and responses without a reward need it")
    return value


def _one_each(row: Row, name: str, default: Any, count: int) -> list:
    values = [default] * count if row.get(name) is None else row[name]
    if not isinstance(values, list) or len(values) != count:
        found = f"{len(values)} of them" if isinstance(values, list) else type(values).__name__
        raise BadRow(f"{name!r} must be a list with one entry per completion ({count}), found {found}")
    return values


def _reward(value: Any) -> float | None:
    if value is None:
        return None
    try:
        finite = isinstance(value, (int, float)) and math.isfinite(value)
    except OverflowError:  # a whole number beyond what a float holds
        finite = False
    if not finite:
        raise BadRow(f"a reward must be a finite number or null, found {reprlib.repr(value)}")
    return float(value)


def _source_of(row: Row) -> str:
    return _utf8(row.get("data_source") or "", "'data_source'")
