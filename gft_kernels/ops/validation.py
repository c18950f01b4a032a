"""Checks of what an op is called with, in one visit. An error names the value and the way out.

Shapes, dtypes and devices are known on the host. Values are on the device, and all of them are
looked at in one wait for it. Group rewards are looked at where they are normalised, always.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..head import PLAIN, Backend, Head, Operands
from ..losses.advantages import GroupRewards
from ..losses.objectives import PER_TOKEN, VECTORS, LossFunction, Objective, Sum, Weighted, terms
from . import refusals
from .agreement import refuse, together

BACKENDS = ("auto", "eager", "chunked", "triton")
INTEGERS = ("sequence_ids",)
NOT_NEGATIVE = ("sequence_ids", "importance_weights")
ONE_OF_TWO = {
    "tau": "give one of them a number",
    "sequence_ids": "give both the same tensor",
    "importance_weights": "give both the same tensor",
}
# The operands by the names that a caller gives them, and which part of a layer each is.
PARTS = {
    "hidden": "its last_hidden_state, [N, D]",
    "weight": "its weight, [V, D], and put its bias into Head(bias=...)",
    "Head.bias": "its bias, [V]",
    "Head.low_rank.hidden": "its output, [N, r]",
    "Head.low_rank.weight": "its weight, [V, r]",
}
_BY_NAME = {name: Backend(name) for name in BACKENDS}


class LossArguments(NamedTuple):
    """What a loss is called with beside the head's operands, or beside the logits."""

    targets: Tensor  # [N]
    per_token: dict[str, Tensor | GroupRewards | None]  # [N] each, in the order of PER_TOKEN
    token_weights: Tensor | None  # [N]
    objective: LossFunction
    head: Head
    backend: Backend

    def vectors(self) -> dict[str, Tensor | None]:
        """The per-token tensors by name. Group rewards are checked where they are normalised."""
        given: dict[str, Any] = self.per_token | {"token_weights": self.token_weights}
        if isinstance(given["advantages"], GroupRewards):
            del given["advantages"]
        return given


def as_head(head: Head | None) -> Head:
    """The head that a caller means: None stands for a plain one."""
    if head is not None and not isinstance(head, Head):
        raise TypeError(
            f"head is {type(head).__name__}: give gft_kernels.Head(bias=..., temperature=...), which holds what a head "
            "does beside its weight. The weight [V, D] is an argument of its own."
        )
    return PLAIN if head is None else head


def as_backend(backend: str | Backend) -> Backend:
    """The backend that a caller means: a name stands for its `Backend`."""
    name = backend.name if isinstance(backend, Backend) else backend
    if name not in BACKENDS:
        raise ValueError(f"backend = {name!r} is unknown: choose one of {', '.join(map(repr, BACKENDS))}.")
    return backend if isinstance(backend, Backend) else _BY_NAME[name]


def check_head_loss(operands: Operands, arguments: LossArguments) -> LossArguments:
    """The arguments of a loss on a head, checked, with targets as int64."""
    head, backend = arguments.head, arguments.backend

    def check() -> LossArguments:
        _check_operands(operands)
        targets = check_targets(arguments.targets, operands.hidden)
        return check_loss(arguments._replace(targets=targets), operands.hidden, _vocabulary(operands, head, backend))

    if head.shard is None:
        return check()
    objective, advantages = arguments.objective, arguments.per_token["advantages"]
    skips = bool(getattr(objective, "zero_at_zero_advantage", False))
    said = [getattr(term, "sequence_ids", None) for term in terms(objective)]
    said += [getattr(objective, "importance_weights", None), arguments.token_weights, advantages, skips]
    return together(check, operands, (arguments.targets, *said), head, backend)


def check_head(operands: Operands, targets: Tensor, head: Head, backend: Backend) -> Tensor:
    """The targets of a head, checked, as int64."""

    def check() -> Tensor:
        _check_operands(operands)
        checked = check_targets(targets, operands.hidden)
        check_values(checked, _vocabulary(operands, head, backend), head, backend)
        return checked

    return check() if head.shard is None else together(check, operands, (targets,), head, backend)


def _vocabulary(operands: Operands, head: Head, backend: Backend) -> int:
    """V of the whole head. Refuses what a shard or a low-rank addition does not go with."""
    if head.low_rank is not None and backend.sparsity is not None:
        raise ValueError("Backend.sparsity and Head.low_rank do not go together: leave sparsity out.")
    if head.shard is None:
        return len(operands.weight)
    refused = {"backend='eager'": backend.name == "eager", "Backend.sparsity": backend.sparsity is not None}
    for name, asked in refused.items():
        if asked:
            refuse(head.shard, name)
    return head.shard.size


def check_loss(arguments: LossArguments, like: Tensor, size: int) -> LossArguments:
    """Check all but the shapes of targets and operands. The objective's vectors join the others."""
    objective = arguments.objective
    parameters = token_parameters(objective)
    if "sequence_ids" in parameters and parameters["sequence_ids"] is None:
        parameters["sequence_ids"] = _sequence_ids(arguments)
    arguments = arguments._replace(per_token={**arguments.per_token, **parameters})
    for name in getattr(objective, "needs", ()):
        if name not in PER_TOKEN:
            raise ValueError(f"objective {objective!r} needs {name!r}; per-token inputs are {', '.join(PER_TOKEN)}.")
        if arguments.per_token[name] is None:
            raise ValueError(f"objective {objective!r} needs {name} [N]; none were given.")
    vectors = arguments.vectors()
    for name, vector in vectors.items():
        if vector is not None:
            _check_per_token(name, vector, like)
            if name in INTEGERS:
                if vector.is_floating_point() or vector.is_complex() or vector.dtype == torch.bool:
                    raise TypeError(f"{name} have dtype {vector.dtype}; they must be integers.")
            elif not vector.is_floating_point():
                raise TypeError(f"{name} has dtype {vector.dtype}; it must be floating point.")
    check_values(arguments.targets, size, arguments.head, arguments.backend, vectors)
    return arguments


def _sequence_ids(arguments: LossArguments) -> Tensor:
    """Which sequence each row belongs to, where the objective does not say."""
    advantages = arguments.per_token["advantages"]
    if isinstance(advantages, GroupRewards):
        return advantages.sequence_ids
    raise ValueError(
        f"objective {arguments.objective!r} has a ratio for every sequence, and nothing says which rows are one: give "
        "it sequence_ids [N], or advantages as GroupRewards, which have them."
    )


def token_parameters(objective: LossFunction) -> dict[str, Tensor | None]:
    """The objective's parameters with a value for every token, [N] each.

    None stands for sequence_ids that the call must bring.

    Raises:
        TypeError: a name, a class, or anything else that is no loss function.
        ValueError: two such parameters of one name in a sum.
    """
    if isinstance(objective, type):
        raise TypeError(f"objective = {objective.__name__} is a class: call it, {objective.__name__.lower()}().")
    if not callable(objective):
        raise TypeError(
            f"objective = {objective!r} is {type(objective).__name__}: give a loss function, such as "
            "gft_kernels.gft(0.7), gft_kernels.grpo(), or one of your own."
        )
    if isinstance(objective, Weighted):
        if not isinstance(objective.importance_weights, Tensor):
            kind = type(objective.importance_weights).__name__
            raise TypeError(f"importance_weights are {kind}: give a tensor, one weight a token.")
        inner = token_parameters(objective.objective)
        if "importance_weights" in inner:
            raise ValueError("the objective has importance_weights twice: multiply them outside.")
        return {**inner, "importance_weights": objective.importance_weights}
    if isinstance(objective, Sum):
        first, second = (token_parameters(term) for term in objective.parts)
        for name in first.keys() & second.keys():
            if first[name] is not second[name] and first[name] is not None and second[name] is not None:
                raise ValueError(f"both objectives of the sum have a {name} [N]: {ONE_OF_TWO[name]}.")
        return first | {name: x for name, x in second.items() if x is not None or name not in first}
    found: dict[str, Tensor | None] = {}
    if isinstance(objective, Objective) and is_dataclass(objective):
        for field in fields(objective):
            value = getattr(objective, field.name)
            if field.name == "sequence_ids" and value is True:
                found[field.name] = None
            if not isinstance(value, Tensor):
                continue
            if field.name not in VECTORS or not value.ndim:
                raise TypeError(
                    f"{type(objective).__name__}.{field.name} is a tensor of shape {tuple(value.shape)}: give a number."
                )
            found[field.name] = value
    return found


def _check_operands(operands: Operands) -> None:
    """Refuse operands that do not fit each other, or that no engine takes."""
    hidden, weight, bias, low_hidden, low_weight = operands
    for (name, part), tensor in zip(PARTS.items(), operands, strict=True):
        if tensor is not None or name in ("hidden", "weight"):
            check_tensor(name, tensor, part)
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"Head.bias has shape {tuple(bias.shape)}; it must be [V] = ({weight.shape[0]},).")
    for name, tensor in zip(PARTS, operands, strict=True):
        if tensor is None:
            continue
        if type(tensor).__name__ == "DTensor":
            raise refusals.sharded(name)
        check_dtype(name, tensor)
        if tensor.device != hidden.device:
            raise ValueError(f"{name} is on {tensor.device} but hidden is on {hidden.device}: move them to one device.")
    if hidden.ndim != 2:
        raise ValueError(
            f"hidden has shape {tuple(hidden.shape)}; it must be [N, D]. Flatten batch and time: hidden.flatten(0, -2)."
        )
    if weight.ndim != 2 or weight.numel() == 0:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}; it must be [V, D] and not empty. Where ZeRO-3 or FSDP has "
            "sharded it, call logits_policy_loss on the logits of model(...), whose forward gathers it and reduces "
            "its gradient."
        )
    if hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"hidden is {tuple(hidden.shape)} and weight {tuple(weight.shape)}: their last dimension D must agree."
        )
    if low_hidden is not None and low_weight is not None:
        shapes, rank = (tuple(low_hidden.shape), tuple(low_weight.shape)), low_hidden.shape[-1:]
        if shapes != ((len(hidden), *rank), (len(weight), *rank)) or rank == (0,):
            raise refusals.low_rank(shapes, len(hidden), len(weight))


def check_tensor(name: str, given: object, part: str) -> None:
    """Refuse a layer, or a model's output, in place of the tensor that it holds."""
    if not isinstance(given, Tensor):
        raise TypeError(f"{name} is {type(given).__name__}, not a tensor: pass {part}.")


def check_dtype(name: str, tensor: Tensor) -> None:
    if not tensor.is_floating_point() or tensor.element_size() < 2:
        has = "have" if name == "logits" else "has"
        raise TypeError(f"{name} {has} dtype {tensor.dtype}: float64, float32, float16 and bfloat16 are supported.")


def check_targets(targets: Tensor, like: Tensor) -> Tensor:
    _check_per_token("targets", targets, like)
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise TypeError(f"targets have dtype {targets.dtype}; they must be integers (token ids).")
    return targets.long()


def _check_per_token(name: str, tensor: Tensor, like: Tensor) -> None:
    """Refuse a `tensor` that is not [N] on the device of `like` [N, ...]."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} is {type(tensor).__name__}; it must be a tensor [N].")
    if tensor.shape != like.shape[:1]:
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)}; it must be [N] = ({like.shape[0]},), one value a row. "
            "Flatten it, and expand a value per sequence with values[sequence_ids]."
        )
    if tensor.device != like.device:
        raise ValueError(f"{name} is on {tensor.device}, the head's input on {like.device}: move them to one device.")


def check_values(
    targets: Tensor, size: int, head: Head, backend: Backend, vectors: dict[str, Tensor | None] | None = None
) -> None:
    """Refuse targets outside 0..size-1, and NaN or negative values that must not be, if unmasked.

    Waits for the device once, unless `Backend.validate` is off. While a program is being compiled
    there are no values: its custom ops look when it runs.
    """
    if not backend.validate or torch.compiler.is_compiling():
        return
    valid = targets != head.ignore_index
    bad = {"targets": valid & ((targets < 0) | (targets >= size))}
    bad |= {name: valid & _unusable(name, vector) for name, vector in (vectors or {}).items() if vector is not None}
    counts = torch.stack([mask.sum() for mask in bad.values()]).tolist()
    for (name, mask), count in zip(bad.items(), counts, strict=True):
        if not count:
            continue
        row = int(mask.nonzero()[0])
        value = targets if name == "targets" else (vectors or {})[name]
        raise refusals.value(name, row, value, count, size, head)


def _unusable(name: str, vector: Tensor) -> Tensor:  # [N] bool
    bad = vector.isnan()
    return bad | (vector < 0) if name in NOT_NEGATIVE else bad
