"""How a user's reward function wants to be called: verl's way or TRL's.

    verl   f(data_source, solution_str, ground_truth, extra_info) -> reward
    TRL    f(completions, prompts, **columns) -> [reward, ...]

A function of TRL's kind gets one response at a time, in lists of one. It may return [None]: it does
not apply to this response.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

VERL = ("data_source", "solution_str", "ground_truth", "extra_info")
TRL = ("prompts", "completions", "solution", "ground_truth", "answer", "data_source", "log_extra", "log_metric")
FITS = (
    "write f(data_source, solution_str, ground_truth, extra_info=None) -> float as for verl, or f(completions, "
    "prompts, solution, **kwargs) -> list of floats as for TRL"
)

Caller = Callable[[Sequence[Any]], Any]  # from (data_source, solution_str, ground_truth, extra_info) to a return value


class Inapplicable(Exception):
    """A function of TRL's kind returned None: it has no say on this response."""


def caller_of(function: Callable[..., Any]) -> Caller:
    """What calls `function` as its parameters ask for.

    Raises:
        TypeError: it takes neither verl's arguments nor TRL's.
    """
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:  # written in C: nothing is known of it
        return lambda values: function(*values)
    if "completions" in parameters or "completion_ids" in parameters:
        names = _accepted(function, parameters, TRL, "TRL's")
        return lambda values: _one(function(**_select(_trl_arguments(*values), names)))
    if "solution_str" in parameters:
        names = _accepted(function, parameters, VERL, "verl's")
        return lambda values: function(**_select(dict(zip(VERL, values, strict=True)), names))
    try:
        inspect.signature(function).bind(*VERL)
    except TypeError as error:
        given = ", ".join(map(str, parameters.values()))
        raise TypeError(
            f"the reward function takes ({given}), and neither verl nor TRL calls it so: {FITS}."
        ) from error
    return lambda values: function(*values)


def _accepted(function: Any, parameters: Any, known: tuple[str, ...], whose: str) -> set[str]:
    """Which of the known arguments a function takes by name.

    Raises:
        TypeError: it needs others.
    """
    kinds = inspect.Parameter
    missing = [
        name
        for name, p in parameters.items()
        if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)
        and p.default is kinds.empty
        and (name not in known or p.kind is kinds.POSITIONAL_ONLY)
    ]
    if missing:
        raise TypeError(
            f"the reward function has {whose} signature and needs {', '.join(missing)} besides, which it would not "
            f"get: it may take {', '.join(known)}."
        )
    takes_all = any(p.kind is kinds.VAR_KEYWORD for p in parameters.values())
    return set(known if takes_all else parameters) & set(known)


def _select(values: dict[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in names}


def _trl_arguments(data_source: str, text: str, solution: str, extra_info: dict[str, Any]) -> dict[str, Any]:
    """One response as TRL hands over a batch: of chats a completion is a list of one message.

    The columns are what TRL's users call the solution. What a function logs goes nowhere.
    """
    prompt = extra_info["prompt"]
    completion = text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
    columns = {name: [solution] for name in ("solution", "ground_truth", "answer")}
    logs = {name: _log_nothing for name in ("log_extra", "log_metric")}
    return {"prompts": [prompt], "completions": [completion], "data_source": [data_source], **columns, **logs}


def _log_nothing(*arguments: Any, **named: Any) -> None: ...


def _one(returned: Any) -> Any:
    """The reward in a list of one.

    Raises:
        TypeError: it is no such list.
        Inapplicable: it is None.
    """
    if not isinstance(returned, (list, tuple)) or len(returned) != 1:
        found = f"{len(returned)} of them" if isinstance(returned, (list, tuple)) else type(returned).__name__
        raise TypeError(f"the reward function must return a list of one reward for one completion, found {found}")
    if returned[0] is None:
        raise Inapplicable
    return returned[0]
