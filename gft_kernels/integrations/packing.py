"""Packed rows: several sequences in one row, without padding.

transformers tells the sequences of a row apart by position_ids that start again. It does so where
there is no cache and no 2-D attention mask; with either, tokens see the sequence before theirs and
nothing is said. So a call for a loss runs without a cache, and what would leak is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .batch import PolicyBatch, shift
from .verify import LENGTH, is_exact, two_rows, undisturbed


class Packed(NamedTuple):
    """What `pack` returns: `model(**inputs, policy_batch=PolicyBatch(targets, ...))`.

    A value of every sequence is laid on its tokens by indexing, `values[sequence_ids]`, and
    `GroupRewards` takes the sequence_ids as they are.
    """

    inputs: dict[str, Tensor]  # input_ids and position_ids, [1, T]
    targets: Tensor  # [1, T-1]; the last position of every sequence is masked
    sequence_ids: Tensor  # [1, T-1]
    lengths: tuple[int, ...]  # of the sequences; T is their sum

    def join(self, values: Sequence[Tensor]) -> Tensor:  # S of [length - 1] -> [1, T-1]
        """Per-token values of each sequence in one row, 0 between sequences."""
        found, wanted = [len(x) for x in values], [n - 1 for n in self.lengths]
        if found != wanted:
            raise ValueError(
                f"join got values of lengths {found}; the targets of the sequences have lengths {wanted}: a sequence "
                "has one target less than tokens."
            )
        return torch.cat([nn.functional.pad(x, (0, 1)) for x in values])[None, :-1]

    def split(self, row: Tensor) -> list[Tensor]:  # [1, T-1] -> S of [length - 1]
        """What `join` put together, such as the log-probs of a result."""
        parts = nn.functional.pad(row[0], (0, 1)).split(self.lengths)
        return [x[:-1] for x in parts]

    def flash_arguments(self) -> dict[str, Any]:
        """The ends of the sequences for flash-attn, which it reads from position_ids otherwise.

        That costs a wait for the device in every layer. Add them: `model(**inputs, **these, ...)`.
        """
        device = self.targets.device
        ends = torch.tensor([0, *accumulate(self.lengths)], dtype=torch.int32, device=device)
        longest = max(self.lengths)
        return {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}


def pack(sequences: Sequence[Tensor], labels: Sequence[Tensor] | None = None, *, ignore_index: int = -100) -> Packed:
    """One row of several sequences, and its targets, for a fused model.

    Equivalent to, for each sequence by itself::

        targets = labels[1:]  # of positions 0 to length - 2; the last position has none

    Args:
        sequences: S tensors [length] of token ids, a prompt and its response each. From a padded
            batch: `[ids[mask.bool()] for ids, mask in zip(input_ids, attention_mask)]`.
        labels: one [length] for each, lying on their own tokens, negative where nothing is trained.
            None trains on every token but the first of each sequence.
        ignore_index: the target value of a masked token.

    Returns:
        Packed(inputs, targets, sequence_ids, lengths), with `join` and `split` for values of
        tokens.

    Raises:
        ValueError: no sequences, an empty one, one that is not [length], or labels of another
            shape.

    Cost: copies of the ids. A row has no padding; what attention costs depends on its kernel: the
    length of each sequence with flash-attn, the length of the row with others.
    """
    if len(sequences) == 0:
        raise ValueError("there are no sequences to pack: give at least one, a tensor [length] of token ids.")
    for i, x in enumerate(sequences):
        if x.ndim != 1 or len(x) == 0:
            raise ValueError(f"sequence {i} has shape {tuple(x.shape)}: it must be [length], of one token or more.")
    labels = sequences if labels is None else labels
    shapes, wanted = [tuple(x.shape) for x in labels], [tuple(x.shape) for x in sequences]
    if shapes != wanted:
        raise ValueError(f"labels have shapes {shapes} and sequences {wanted}: a label lies on each token.")
    lengths = tuple(len(x) for x in sequences)
    device = sequences[0].device
    positions = torch.cat([torch.arange(n, device=device) for n in lengths])[None]
    # The first token of a sequence is not predicted from the end of the one before.
    laid = torch.cat(list(labels))[None].masked_fill(positions == 0, ignore_index)
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(device)[None, :-1]
    inputs = {"input_ids": torch.cat(list(sequences))[None], "position_ids": positions}
    return Packed(inputs, shift(laid, ignore_index), ids, lengths)


@torch.no_grad()
def tells_apart(model: Any, layer: nn.Linear) -> bool:
    """Whether a sequence of a packed row is blind to the one before it.

    Attention layers are; the state of most recurrent ones runs on through the row.

    Cost: two forwards of the model on eight tokens.
    """
    device, hidden = layer.weight.device, []
    handle = layer.register_forward_pre_hook(lambda _, inputs: hidden.append(inputs[0][0].double()))
    first = two_rows(layer.out_features, device)
    positions = torch.arange(LENGTH, device=device).repeat(2)[None]
    try:
        with undisturbed(model, device):
            for before in (first[0], first[1].flip(0)):
                ids = torch.cat([before, first[0]])[None]
                output = model(input_ids=ids, position_ids=positions, use_cache=False)
    except Exception:  # it takes no position_ids: then nothing tells it where a sequence starts
        return False
    finally:
        handle.remove()
    difference = (hidden[0] - hidden[1]).abs()
    noise = 1e-4 if is_exact(layer.weight, output.logits) else 1e-2  # experts computed in other groups
    return bool(difference[LENGTH:].max() <= noise * difference[:LENGTH].max())


def loss_arguments(
    model: Any, names: Sequence[str], args: tuple[Any, ...], kwargs: dict[str, Any], batch: PolicyBatch
) -> dict[str, Any]:
    """The keyword arguments of a call for its loss: without a cache, packed rows only where exact.

    Raises:
        ValueError: the sequences of a packed row would see each other, or be taken for one. Under
            torch.compile nobody looks.
        TypeError: labels, which ask for another loss.
    """
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    for name in ("labels", "shift_labels"):
        if given.get(name) is not None:
            raise TypeError(
                f"{name} and policy_batch ask for two losses: leave {name} out, and make targets of labels by "
                "shift(labels)."
            )
    positions: Any = given.get("position_ids")
    if isinstance(positions, Tensor) and positions.ndim == 2 and not torch.compiler.is_compiling():
        _refuse_leak(model, positions, given)
        if batch.rows_are_sequences and _starts_again(positions, given.get("attention_mask")):
            raise ValueError(
                f"position_ids start again: the row holds several sequences, and {batch.objective!r} would take it for "
                "one. Give their ids [B, T-1]: gspo(sequence_ids=packed.sequence_ids), as pack(...) returns them."
            )
    return kwargs if "use_cache" in names[: len(args)] else {**kwargs, "use_cache": False}


def _refuse_leak(model: Any, positions: Tensor, given: dict[str, Any]) -> None:
    mask: Any = given.get("attention_mask")
    is_flat = isinstance(mask, Tensor) and mask.ndim == 2
    flash = "flash" in str(getattr(model.config, "_attn_implementation", "")) and "cu_seq_lens_q" not in given
    if not model._fused.tells_apart:
        why, way = f"{type(model).__name__} carries its state from one to the next", "give a padded batch"
    elif is_flat:
        why, way = "with an attention_mask [B, T] transformers does not tell them apart", "leave attention_mask out"
    elif any(given.get(name) is not None for name in ("past_key_values", "cache")):
        why, way = "with a cache transformers does not tell them apart", "leave the cache out"
    elif flash and len(positions) > 1:
        why, way = f"flash-attn reads position_ids of one row alone, not of {len(positions)}", "pack into one row"
    else:
        return
    if _starts_again(positions, mask):  # in the doubtful cases only
        raise ValueError(f"position_ids start again: the row holds several sequences, and {why}. Then {way}.")


def _starts_again(positions: Tensor, mask: Any) -> bool:
    """Whether a row of positions [B, T] holds several sequences. A wait for the device."""
    found = positions.diff(dim=-1) != 1
    if isinstance(mask, Tensor) and mask.shape == positions.shape:  # padding has positions of its own
        found = found & mask[:, 1:].bool() & mask[:, :-1].bool()
    return bool(found.any())
