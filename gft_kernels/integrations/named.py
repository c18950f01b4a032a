"""Objectives by name and numbers, as configuration files write them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from ..losses.objectives import Objective, dft, gft, reinforce, sft
from ..losses.ratios import cispo, grpo

OBJECTIVES: dict[str, Any] = {
    "sft": sft,
    "dft": dft,
    "gft": gft,
    "reinforce": reinforce,
    "grpo": grpo,
    "cispo": cispo,
}


def named_objective(name: str, numbers: Mapping[str, Any], among: Iterable[str] = OBJECTIVES) -> Objective:
    """The objective of that name, with its numbers.

    Equivalent to, for `named_objective("gft", {"tau": 0.7})`::

        gft(tau=0.7)

    Args:
        name: one of `among`.
        numbers: the objective's own parameters.
        among: the names that make sense where it is asked for.

    Raises:
        ValueError: a name or a number that there is not, or a number out of range.
        TypeError: a number that is none.
    """
    if name not in among:
        raise ValueError(f"objective = {name!r}: choose one of {', '.join(among)}.")
    known = [field.name for field in fields(OBJECTIVES[name]) if field.name != "sequence_ids"]  # no number
    for number, value in numbers.items():
        if number not in known:
            has = f"has {', '.join(known)}" if known else "has no numbers"
            raise ValueError(f"{number} = {value!r}: the objective {name} {has}.")
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            hint = " (YAML reads 1e-1 as text: write 0.1)" if isinstance(value, str) else ""
            raise TypeError(f"{number} = {value!r}: give the objective {name} a number{hint}.")
    return OBJECTIVES[name](**numbers)
