"""One call of a reward function: a finite number, or the reason why there is none."""

from __future__ import annotations

import inspect
import math
import reprlib
import traceback
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from importlib import import_module
from numbers import Real
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from .signatures import Inapplicable

RewardFunction = Callable[..., Any]
"""A reward function, called as `signatures` finds that it wants to be."""


class Scored(NamedTuple):
    """A reward, or the reason why there is none.

    A checker that failed says nothing about the response. Neither a value nor an error: one of
    TRL's kind does not apply to it.
    """

    value: float | None
    error: str | None
    parts: Mapping[str, float] = MappingProxyType({})  # of a sum: what each term gave, before its weight


def call_reward(function: Callable[..., Any], arguments: Sequence[Any]) -> Scored:
    """function(*arguments) as a finite number, or the error that it ended in.

    A NaN and anything that is not a number are errors too.
    """
    try:
        return Scored(_finite(function(*arguments)), None)
    except Inapplicable:
        return Scored(None, None)
    except MemoryError:  # the process may be in any state: whoever owns it ends it
        raise
    except Exception as error:
        return Scored(None, reason_of(error))


def _finite(value: Any) -> float:
    """What a reward function returned, as a float: a number, or one of numpy's or torch's.

    Raises:
        TypeError: it is no number.
        ValueError: it is not finite.
    """
    what = f"the reward function returned {reprlib.repr(value)} ({type(value).__name__})"
    if isinstance(value, dict):  # verl's functions may return {"score": ..., more metrics}
        if "score" not in value:
            raise TypeError(f"{what}, a dict without 'score'")
        return _finite(value["score"])
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()
    if inspect.isawaitable(value):
        raise TypeError(f"{what}: it must be a plain function, not an async one")
    if isinstance(value, (list, tuple, str)) or hasattr(value, "shape"):
        raise TypeError(f"{what}, not a number: it is called with one response, and returns its reward")
    if not isinstance(value, (Real, Decimal)):
        raise TypeError(f"{what}, not a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{what}, not a finite number")
    return number


def reason_of(error: BaseException) -> str:
    """The kind of an error, its text, and the line of the user's code that raised it."""
    try:
        text = str(error)
    except Exception:
        text = "(its text cannot be shown)"
    places = traceback.extract_tb(error.__traceback__)[1:]  # the first is call_reward
    place = f" ({Path(places[-1].filename).name}:{places[-1].lineno})" if places and not _ours(places[-1]) else ""
    return f"{type(error).__name__}: {text[:500]}{place}"


def _ours(place: traceback.FrameSummary) -> bool:
    return Path(place.filename).is_relative_to(Path(__file__).parent)


def import_reward(name: str) -> RewardFunction:
    """The function that "package.module:function" names."""
    module, _, attribute = name.partition(":")
    function = getattr(import_module(module), attribute)
    if not callable(function):
        raise TypeError(f"{name} is a {type(function).__name__}, not a function")
    return function
