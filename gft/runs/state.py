"""The state of a run between two updates: with weights and optimiser, all that the rest depends on.

It changes at three places only: when a step's rollouts are there, when the step is whole, and when
an evaluation is logged. Whatever interrupts the run in between, the last of them can be saved, and
a run that goes on from there has the same numbers, to the bit, as one that was never interrupted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from ..data.files import Example
from ..evaluation.evaluate import Accuracy
from ..groups import Batch, Member


@dataclass
class RunState:
    """Where a run stands."""

    step: int = 0  # whole updates
    cursor: int = 0  # prompts that were taken from the order
    bad_steps: int = 0  # the last so many updates were dropped, because their gradient was not finite
    offset: int = 0  # bytes of metrics.jsonl
    accuracies: dict[int, Accuracy] = field(default_factory=dict)  # by the step they were measured after
    random: dict[str, str] = field(default_factory=dict)  # states of torch's generators
    in_use: Batch | None = None  # rollouts that have updates left, sampled and scored
    used: int = 0  # updates that were made of them
    is_changing: bool = False  # weights and counters are not those of one moment: nothing to save

    def hold(self, batch: Batch, prompts: int, device: torch.device) -> None:
        """Keep new rollouts: a run that is interrupted in an update need not sample again."""
        self.in_use, self.used, self.random = batch, 0, random_state(device)
        self.cursor += prompts

    def advance(self, updates: int, skipped: bool, offset: int, device: torch.device) -> None:
        """A step is whole, and its row is in metrics.jsonl. Rollouts serve so many updates."""
        self.step += 1
        self.used += 1
        if self.used == updates:
            self.in_use = None
        self.bad_steps = self.bad_steps + 1 if skipped else 0
        self.offset, self.random = offset, random_state(device)
        self.is_changing = False

    def as_json(self, examples: Sequence[Example]) -> dict[str, Any]:
        """The state as what JSON has; a member names its example by its place among `examples`."""
        found = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "is_changing"}
        if self.in_use is not None:
            place = {id(example): i for i, example in enumerate(examples)}
            members = [vars(m) | {"example": place[id(m.example)]} for m in self.in_use.members]
            found["in_use"] = vars(self.in_use) | {"members": members}
        return found

    @classmethod
    def from_json(cls, found: dict[str, Any], examples: Sequence[Example]) -> RunState:
        """What `as_json` gave."""
        accuracies = {int(step): Accuracy(*values) for step, values in found["accuracies"].items()}
        batch = found["in_use"]
        if batch is not None:
            members = [Member(**m | {"example": examples[m["example"]]}) for m in batch["members"]]
            batch = Batch(**batch | {"members": members})
        return cls(**found | {"accuracies": accuracies, "in_use": batch})


def random_state(device: torch.device) -> dict[str, str]:
    """The states of the generators that a run draws from, in hexadecimal."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return {name: bytes(state.tolist()).hex() for name, state in states.items()}


def set_random_state(states: dict[str, str], device: torch.device) -> None:
    """Let the generators go on from `states`."""
    for name, text in states.items():
        state = torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
        if name == "cpu":
            torch.set_rng_state(state)
        else:
            torch.cuda.set_rng_state(state, device)
