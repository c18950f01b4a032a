"""A head, a backend and an objective as the numbers and text that a custom op can take."""

from __future__ import annotations

import functools
import math
import operator
from dataclasses import fields
from typing import Any, NamedTuple

from torch import Tensor

from ...head import Backend, Head, Sparse
from ...losses import objectives
from ...losses.objectives import LossFunction, Objective

_KINDS: dict[str, Any] = {
    kind.__name__: kind
    for kind in (
        objectives.SFT,
        objectives.DFT,
        objectives.GFT,
        objectives.Reinforce,
        objectives.GRPO,
        objectives.CISPO,
        objectives.KL,
    )
}
_FIELDS = {name: [field.name for field in fields(kind)] for name, kind in _KINDS.items()}


class Settings(NamedTuple):
    """A head without its bias, and a backend."""

    numbers: list[float]  # scale, softcap or 0, temperature; then what Sparse holds, if there is one
    flags: list[int]  # ignore_index, chunk_rows or 0, skip_rows, validate
    engine_name: str


def encode(head: Head, backend: Backend, engine_name: str) -> Settings:
    """Settings of a head and a backend, whose engine is chosen already."""
    sparse = backend.sparsity
    given: list[float] = []
    if sparse is not None:
        given = [sparse.error, -1.0 if sparse.eps is None else sparse.eps, float(sparse.tail), sparse.pays]
    numbers = [head.scale, head.softcap or 0.0, head.temperature, *given]
    flags = [head.ignore_index, backend.chunk_rows or 0, int(backend.skip_rows), int(backend.validate)]
    return Settings(numbers, flags, engine_name)


def decode(bias: Tensor | None, numbers: list[float], flags: list[int], engine_name: str) -> tuple[Head, Backend]:
    """The head and the backend of `Settings`, with the bias put back."""
    scale, softcap, temperature, *given = numbers
    ignore_index, chunk_rows, skip_rows, validate = flags
    sparse = Sparse(given[0], None if given[1] < 0 else given[1], bool(given[2]), given[3]) if given else None
    head = Head(bias, scale, softcap or None, temperature, ignore_index)
    return head, Backend(engine_name, chunk_rows or None, bool(skip_rows), bool(validate), sparse)


def has_sparsity(numbers: list[float]) -> bool:
    return len(numbers) > 3


def objective_spec(objective: LossFunction) -> tuple[str, list[float]] | None:
    """The objective as names and numbers for `from_spec`, or None where it has no such form."""
    if isinstance(objective, objectives.Sum):
        first, second = (objective_spec(part) for part in objective.parts)
        return None if first is None or second is None else (f"{first[0]} + {second[0]}", [*first[1], *second[1]])
    name = type(objective).__name__
    if _KINDS.get(name) is not type(objective):
        return None
    values = [getattr(objective, field) for field in _FIELDS[name]]
    return name, [math.nan if value is None else value for value in values]


def from_spec(names: str, numbers: list[float]) -> Objective:
    """The objective that `objective_spec` described."""
    left, built = list(numbers), []
    for kind in (_KINDS[name] for name in names.split(" + ")):
        count = len(_FIELDS[kind.__name__])
        values, left = left[:count], left[count:]
        built.append(kind(*(None if math.isnan(value) else value for value in values)))
    return functools.reduce(operator.add, built)
