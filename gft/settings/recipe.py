"""Recipes: options of gft train in a TOML file.

    steps = 300              an option's own name
    prompts-per-step = 16    hyphens as typed, or underscores

    [optim]                  a part of the configuration as a heading: nothing but order
    lr = 1e-6

Paths are those that would be typed: from the folder that the command is run in.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from tomllib import TOMLDecodeError, loads
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from .config import TrainConfig
from .options import OptionError, option

TYPED_ONLY = ("recipe", "resume", "overwrite")  # of a command, and not of a run


def with_recipe(config: TrainConfig, path: Path) -> TrainConfig:
    """The configuration with the options of a recipe in place of its own.

    Raises:
        OptionError: the file cannot be read, or an option is unknown, misplaced, of another type,
            out of range, or one that only the command line takes.
    """
    values = read_recipe(path)
    parts = {f.name: getattr(config, f.name) for f in fields(config) if is_dataclass(getattr(config, f.name))}
    own = {f.name for f in fields(config)}
    changed: dict[str, Any] = {name: value for name, value in values.items() if name in own}
    try:
        for name, part in parts.items():
            inside = {f.name: values[f.name] for f in fields(part) if f.name in values}
            if inside:
                changed[name] = replace(part, **inside)
        return replace(config, **changed, recipe=path)
    except OptionError as error:
        raise OptionError(f"{path}: {error}") from error


def read_recipe(path: Path) -> dict[str, Any]:
    """The options of a recipe by the names of their fields, each of its own type.

    Raises:
        OptionError: as in `with_recipe`, but for ranges.
    """
    try:
        found = loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, TOMLDecodeError) as error:
        raise OptionError(f"--recipe {path} cannot be read: {error}") from error
    kinds, homes = dict(_kinds(TrainConfig)), dict(_homes(TrainConfig))
    values: dict[str, Any] = {}
    for key, value, heading in _entries(path, found, {home for home in homes.values() if home}):
        name = key.replace("-", "_")
        if name not in kinds or name in TYPED_ONLY:
            raise OptionError(f"{path}: {_unknown(name, key, kinds)}")
        if heading not in ("", homes[name]):
            home = f"[{homes[name]}]" if homes[name] else "the top, before the first heading"
            raise OptionError(f"{path}: {key} stands under [{heading}]; it belongs under {home}.")
        if name in values:
            raise OptionError(f"{path}: {key} is there twice.")
        values[name] = _of_type(path, name, value, kinds[name])
    return values


def _entries(path: Path, found: dict[str, Any], headings: set[str]) -> Iterator[tuple[str, Any, str]]:
    """(key, value, heading or "") of a file."""
    for key, value in found.items():
        if isinstance(value, dict):
            if not value and key not in headings:
                raise OptionError(f"{path}: there is no heading [{key}]; there are {', '.join(sorted(headings))}.")
            yield from ((inner, entry, key) for inner, entry in value.items())
        else:
            yield key, value, ""


def _kinds(config: type) -> Iterator[tuple[str, Any]]:
    """(name, type) of every option of a configuration and its parts."""
    for name, kind in get_type_hints(config).items():
        if is_dataclass(kind):
            yield from _kinds(kind)  # type: ignore[arg-type]
        else:
            yield name, kind


def _homes(config: type) -> Iterator[tuple[str, str]]:
    """(name, the part that it is in) of every option; "" is the configuration itself."""
    for name, kind in get_type_hints(config).items():
        if is_dataclass(kind):
            yield from ((inner, name) for inner in get_type_hints(kind))
        else:
            yield name, ""


def _unknown(name: str, key: str, kinds: dict[str, Any]) -> str:
    """What is wrong with a name, and what may be meant."""
    if name in TYPED_ONLY:
        return f"{option(name)} is typed, and stands in no recipe."
    near = get_close_matches(name, [n for n in kinds if n not in TYPED_ONLY], n=1, cutoff=0.5)
    return f"there is no option {key}; " + (f"the nearest is {near[0]}." if near else "gft train --help lists them.")


def _of_type(path: Path, name: str, value: Any, kind: Any) -> Any:
    """A value of TOML as its option has it.

    Raises:
        OptionError: it is of another type, or none of the choices.
    """
    for choice in get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,):
        if get_origin(choice) is Literal and isinstance(value, str) and value in get_args(choice):
            return value
        if get_origin(choice) is tuple and isinstance(value, list):
            return tuple(_of_type(path, name, entry, get_args(choice)[0]) for entry in value)
        if choice is Path and isinstance(value, str):
            return Path(value)
        if choice is float and type(value) in (int, float):  # True is an int to isinstance
            with suppress(OverflowError):
                return float(value)
        if choice in (int, str, bool) and type(value) is choice:
            return value
    raise OptionError(f"{path}: {name} is {value!r}; it must be {_words(kind)}.")


def _words(kind: Any) -> str:
    """A type in words: "a number", "one of group, batch, none"."""
    plain = {int: "a whole number", float: "a number", str: "text", bool: "true or false", Path: "a path, as text"}
    choices = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    if get_origin(choices[0]) is tuple:
        return f"a list, each {_words(get_args(choices[0])[0])}"
    named = [
        "one of " + ", ".join(map(str, get_args(c))) if get_origin(c) is Literal else plain[c]
        for c in choices
        if c is not type(None)
    ]
    return " or ".join(named)
