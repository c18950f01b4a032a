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
from ..losses.objectives import PER_TOKEN, VECTORS, LossFunction, Objective, Sum
from .agreement import refuse, together
from .operands import check_dtype, check_operands, check_tensor

BACKENDS = ("auto", "eager", "chunked", "triton")
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
        check_operands(operands)
        targets = _check_targets(arguments.targets, operands.hidden)
        return _check_loss(arguments._replace(targets=targets), operands.hidden, _vocabulary(operands, head, backend))

    if head.shard is None:
        return check()
    skips = bool(getattr(arguments.objective, "zero_at_zero_advantage", False))
    chosen_by = (arguments.targets, arguments.token_weights, arguments.per_token["advantages"], skips)
    return together(check, operands, chosen_by, head, backend)


def check_logits_loss(logits: Tensor, arguments: LossArguments) -> LossArguments:
    """The arguments of a loss on logits [N, V], checked, with targets as int64."""
    targets = _check_logits(logits, arguments)
    return _check_loss(arguments._replace(targets=targets), logits, logits.shape[1])


def check_head(operands: Operands, targets: Tensor, head: Head, backend: Backend) -> Tensor:
    """The targets of a head, checked, as int64."""

    def check() -> Tensor:
        check_operands(operands)
        checked = _check_targets(targets, operands.hidden)
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


def _check_loss(arguments: LossArguments, like: Tensor, size: int) -> LossArguments:
    """Check all but the shapes of targets and operands. A tau [N] joins the per-token inputs."""
    objective = arguments.objective
    arguments = arguments._replace(per_token={**arguments.per_token, **token_parameters(objective)})
    for name in getattr(objective, "needs", ()):
        if name not in PER_TOKEN:
            raise ValueError(f"objective {objective!r} needs {name!r}; per-token inputs are {', '.join(PER_TOKEN)}.")
        if arguments.per_token[name] is None:
            raise ValueError(f"objective {objective!r} needs {name} [N]; none were given.")
    vectors = arguments.vectors()
    for name, vector in vectors.items():
        if vector is not None:
            _check_per_token(name, vector, like)
            if not vector.is_floating_point():
                raise TypeError(f"{name} has dtype {vector.dtype}; it must be floating point.")
    check_values(arguments.targets, size, arguments.head, arguments.backend, vectors)
    return arguments


def token_parameters(objective: LossFunction) -> dict[str, Tensor]:
    """The objective's parameters with a value for every token, [N] each.

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
    if isinstance(objective, Sum):
        first, second = (token_parameters(term) for term in objective.parts)
        for name in first.keys() & second.keys():
            if first[name] is not second[name]:
                raise ValueError(f"both objectives of the sum have a {name} [N]: give one of them a number.")
        return first | second
    found: dict[str, Tensor] = {}
    if isinstance(objective, Objective) and is_dataclass(objective):
        for field in fields(objective):
            value = getattr(objective, field.name)
            if not isinstance(value, Tensor):
                continue
            if field.name not in VECTORS or not value.ndim:
                raise TypeError(
                    f"{type(objective).__name__}.{field.name} is a tensor of shape {tuple(value.shape)}: give a number."
                )
            found[field.name] = value
    return found


def _check_logits(logits: Tensor, arguments: LossArguments) -> Tensor:
    """Refuse what the model's own head has done already. Of a head only the temperature is left."""
    head, backend = arguments.head, arguments.backend
    asked: dict[str, Any] = {"Head.bias": head.bias, "Head.softcap": head.softcap, "Backend.sparsity": backend.sparsity}
    asked |= {"Head.scale": None if head.scale == 1 else head.scale, "Head.low_rank": head.low_rank}
    if head.shard is not None:
        raise ValueError("Head.shard is for linear_policy_loss and linear_logprob: logits must be of the whole V.")
    for name, value in asked.items():
        if value is not None:
            raise ValueError(
                f"{name} = {value} but logits are given, and the model's head has run already: leave it out."
            )
    check_tensor("logits", logits, "its logits, [N, V]")
    if type(logits).__name__ == "DTensor":
        raise TypeError(
            "logits are a DTensor, a shard: the op must see the whole vocabulary. Where all ranks have the same data "
            "(tensor parallelism), pass logits.full_tensor()."
        )
    check_dtype("logits", logits)
    if logits.ndim != 2 or logits.shape[1] == 0:
        raise ValueError(
            f"logits have shape {tuple(logits.shape)}; they must be [N, V] with V > 0. "
            "Flatten batch and time: logits.flatten(0, -2)."
        )
    return _check_targets(arguments.targets, logits)


def _check_targets(targets: Tensor, like: Tensor) -> Tensor:
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
    """Refuse targets outside 0..size-1, and NaN in per-token floats at unmasked rows.

    Waits for the device once, unless `Backend.validate` is off. While a program is being compiled
    there are no values: its custom ops look when it runs.
    """
    if not backend.validate or torch.compiler.is_compiling():
        return
    valid = targets != head.ignore_index
    bad = {"targets": valid & ((targets < 0) | (targets >= size))}
    bad |= {name: valid & vector.isnan() for name, vector in (vectors or {}).items() if vector is not None}
    counts = torch.stack([mask.sum() for mask in bad.values()]).tolist()
    for (name, mask), count in zip(bad.items(), counts, strict=True):
        if not count:
            continue
        row = int(mask.nonzero()[0])
        if name == "targets":
            raise ValueError(
                f"targets[{row}] = {int(targets[row])} is outside the vocabulary 0..{size - 1} (V = {size} columns of "
                f"logits); {count} such rows. Mask a token with ignore_index = {head.ignore_index}, or check that "
                "tokenizer and head match."
            )
        raise ValueError(
            f"{name}[{row}] is NaN ({count} such rows with an unmasked target). Find the reward or log-prob "
            "that failed, or mask those rows with ignore_index."
        )
