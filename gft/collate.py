"""Members of a micro-batch as the rows of one forward pass: padded, or packed without padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gft_kernels.integrations.hf import pack
from gft_kernels.integrations.packing import tells_apart

from .groups import Member

IGNORE = -100  # the target of a position that is not trained on


class Rows(NamedTuple):
    """S members as B rows of T tokens: B = S where they are padded, B = 1 where they are packed."""

    inputs: dict[str, Tensor]  # of the model
    targets: Tensor  # [B, T-1] the token at t + 1, which the hidden state at t predicts; else IGNORE
    sequence: Tensor  # [B, T-1] the place of the member among the S

    @property
    def trained(self) -> Tensor:  # [B, T-1]
        """The positions that predict a token of a response."""
        return self.targets != IGNORE

    def lay(self, values: Sequence[Sequence[float]]) -> Tensor:  # S of [response] -> [B, T-1]
        """A value of every response token at its position, 0 elsewhere."""
        flat = torch.tensor([v for of_member in values for v in of_member], device=self.targets.device)
        return torch.zeros(self.targets.shape, device=flat.device).masked_scatter(self.trained, flat)

    def spread(self, values: Sequence[float]) -> Tensor:  # [S] -> [B, T-1]
        """A value of every member at each of its positions."""
        return torch.tensor(values, device=self.targets.device)[self.sequence]


def collate(members: Sequence[Member], pad: int, device: torch.device) -> Rows:
    """A row a member, padded on the right.

    What is padding is decided by length and never by the token's value: where a model pads with its
    end token, comparing values would mask the end of every response, and the policy would not learn
    to stop.
    """
    width = max(len(m.prompt) + len(m.response) for m in members)
    tokens = torch.full((len(members), width), pad)
    mask = torch.zeros_like(tokens)
    targets = torch.full((len(members), width), IGNORE)
    for row, m in enumerate(members):
        length = len(m.prompt) + len(m.response)
        tokens[row, :length] = torch.tensor(m.prompt + m.response)
        mask[row, :length] = 1
        targets[row, len(m.prompt) : length] = tokens[row, len(m.prompt) : length]
    sequence = torch.arange(len(members))[:, None].expand(-1, width - 1)
    inputs = {"input_ids": tokens.to(device), "attention_mask": mask.to(device)}
    return Rows(inputs, targets[:, 1:].to(device), sequence.to(device))


def check_packed(model: Any) -> None:
    """Refuse a model whose packed sequences would see each other, before the run.

    Raises:
        ValueError: it is one.
    """
    if not tells_apart(model, model.get_output_embeddings()):
        raise ValueError(
            f"--packed: {type(model).__name__} carries its state from one sequence of a row to the next: leave it out."
        )


def collate_packed(members: Sequence[Member], device: torch.device) -> Rows:
    """All members in one row: no padding, and attention keeps them apart by their positions."""
    sequences = [torch.tensor(m.prompt + m.response, device=device) for m in members]
    labels = [torch.tensor([IGNORE] * len(m.prompt) + m.response, device=device) for m in members]
    packed = pack(sequences, labels, ignore_index=IGNORE)
    return Rows(packed.inputs, packed.targets, packed.sequence_ids)
