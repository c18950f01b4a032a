"""A head, a backend and an objective as what a custom op can take.

A program is compiled for texts, flags and the lengths of lists. Numbers that a schedule changes
(temperature, tau, clip, beta) must not be part of it, or every step would make a new graph. A float
argument of a custom op is. So they travel in a small tensor on the CPU, which the op reads as it
runs, without waiting for the device.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...head import Backend, Head, Sparse
from ...losses import objectives, ratios
from ...losses.objectives import LossFunction, Objective

_KINDS: dict[str, Any] = {
    kind.__name__: kind
    for kind in (
        objectives.SFT,
        objectives.DFT,
        objectives.GFT,
        objectives.Reinforce,
        ratios.GRPO,
        ratios.CISPO,
        ratios.KL,
    )
}
_FIELDS = {name: [field.name for field in fields(kind)] for name, kind in _KINDS.items()}
_FLAGS = {field.name for kind in _KINDS.values() for field in fields(kind) if field.type == "bool"}


class Settings(NamedTuple):
    """A head without its bias, and a backend."""

    numbers: Tensor  # scale, softcap or 0, temperature; then what Sparse holds, if there is one
    flags: list[int]  # ignore_index, chunk_rows or 0, skip_rows, validate
    engine_name: str


def encode(head: Head, backend: Backend, engine_name: str) -> Settings:
    """Settings of a head and a backend, whose engine is chosen already."""
    sparse = backend.sparsity
    numbers = [head.scale, 0.0 if head.softcap is None else head.softcap, head.temperature]
    if sparse is not None:
        numbers += [sparse.error, -1.0 if sparse.eps is None else sparse.eps, float(sparse.tail), sparse.pays]
    flags = [head.ignore_index, backend.chunk_rows or 0, int(backend.skip_rows), int(backend.validate)]
    return Settings(as_tensor(numbers), flags, engine_name)


def as_tensor(values: Sequence[float]) -> Tensor:
    """Numbers as a tensor [len(values)] on the CPU."""
    return torch.stack(scalars(values)) if values else torch.empty(0, dtype=torch.float64)


def scalars(values: Sequence[float], device: torch.device | str = "cpu") -> list[Tensor]:
    """Numbers as scalar fp64 tensors, also those of a program whose graph leaves them open.

    A product is one of the few operations with a number that the compiler leaves open too.
    """
    one = torch.ones((), dtype=torch.float64, device=device)
    return [one * value for value in values]


def decode(bias: Tensor | None, numbers: Tensor, flags: list[int], engine_name: str) -> tuple[Head, Backend]:
    """The head and the backend of `Settings`, with the bias put back."""
    scale, softcap, temperature, *given = numbers.tolist()
    ignore_index, chunk_rows, skip_rows, validate = flags
    sparse = Sparse(given[0], None if given[1] < 0 else given[1], bool(given[2]), given[3]) if given else None
    head = Head(bias, scale, softcap or None, temperature, ignore_index)
    return head, Backend(engine_name, chunk_rows or None, bool(skip_rows), bool(validate), sparse)


def has_sparsity(numbers: Tensor) -> bool:
    return numbers.shape[0] > 3


def objective_spec(objective: LossFunction) -> tuple[str, list[float]] | None:
    """The objective as text and numbers, or None where it has no such form.

    For example "GRPO clip_low clip_high + KL corrected beta" and [0.2, 0.28, 0.01]. A flag stands
    there if it is set, and has no number. A tau [N] is left out: it travels with the per-token
    inputs.
    """
    if isinstance(objective, objectives.Sum):
        first, second = (objective_spec(part) for part in objective.parts)
        return None if first is None or second is None else (f"{first[0]} + {second[0]}", [*first[1], *second[1]])
    name = type(objective).__name__
    if _KINDS.get(name) is not type(objective):
        return None
    values = {field: getattr(objective, field) for field in _FIELDS[name]}
    flags = [field for field, x in values.items() if field in _FLAGS and x]
    given = {field: x for field, x in values.items() if field not in _FLAGS and x is not None}
    given = {field: x for field, x in given.items() if not isinstance(x, Tensor)}
    return " ".join([name, *flags, *given]), list(given.values())


def from_spec(text: str, numbers: Sequence[Any], tau: Tensor | None = None) -> Objective:
    """The objective that `objective_spec` described, of its numbers or of `scalars` of them.

    `tau` [N] stands where the objective had one.
    """
    built, left = [], list(numbers)
    for term in text.split(" + "):
        name, *words = term.split()
        given = [word for word in words if word not in _FLAGS]
        flags = {word: True for word in words if word in _FLAGS}
        values, left = left[: len(given)], left[len(given) :]
        vector = {"tau": tau} if "tau" in _FIELDS[name] and "tau" not in given else {}
        built.append(_KINDS[name](**dict(zip(given, values, strict=True)), **flags, **vector))
    return functools.reduce(operator.add, built)
