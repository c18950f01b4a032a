"""What an error says where the check has to look at more than one thing to say it."""

from __future__ import annotations

from typing import Any

from ..head import Head


def sharded(name: str) -> TypeError:
    """An operand is a DTensor."""
    # A plain full_tensor() takes every process's gradient for the whole one.
    shard = (
        " Or leave the weight where it is: weight.to_local() with "
        "Head(shard=gft_kernels.parallel.VocabularyShard.of(weight))."
    )
    return TypeError(
        f"{name} is a DTensor, a shard: pass, anew in every step, {name}.full_tensor() where the processes "
        f"hold the same data (tensor parallelism), and {name}.full_tensor(grad_placements=[Partial('avg')]) "
        f"where each holds its own (FSDP2).{shard if name == 'weight' else ''}"
    )


def low_rank(shapes: tuple[Any, Any], rows: int, size: int) -> ValueError:
    """The factors of a low-rank addition do not fit the head."""
    return ValueError(
        f"Head.low_rank has hidden {shapes[0]} and weight {shapes[1]}; they must be [N, r] and [V, r], with "
        f"N = {rows}, V = {size} and one rank r > 0. For LoRA they are scaling * dropout(x) @ lora_A.T and lora_B."
    )


def value(name: str, row: int, values: Any, count: int, size: int, head: Head) -> ValueError:
    """An unmasked row has a value that it must not have, and `count` rows have one."""
    if name == "targets":
        return ValueError(
            f"targets[{row}] = {int(values[row])} is outside the vocabulary 0..{size - 1} (V = {size} columns of "
            f"logits); {count} such rows. Mask a token with ignore_index = {head.ignore_index}, or check that "
            "tokenizer and head match."
        )
    if values[row].isnan():
        return ValueError(
            f"{name}[{row}] is NaN ({count} such rows with an unmasked target). Find the reward or log-prob "
            "that failed, or mask those rows with ignore_index."
        )
    return ValueError(
        f"{name}[{row}] = {values[row].item():g} ({count} such rows with an unmasked target): it must be 0 or "
        "more. Mask those rows with ignore_index, or find what went wrong there."
    )
