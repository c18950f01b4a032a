"""Seeded faults of the fused loss in trainers: packed rows, mixed precision, FSDP1, refusals."""

from __future__ import annotations

from .mutants import Mutant

FOLDER = "tests/integrations"
PACKED, FUSED, UNFUSED = (f"{FOLDER}/test_{x}.py" for x in ("packing", "fuse", "fuse_refusals"))
SAME = f"{PACKED}::test_packed_loss_is_that_of_the_padded_batch[llama-sdpa]"
LEAKS = f"{PACKED}::test_packed_rows_that_would_leak_are_refused"
REFUSED = f"{UNFUSED}::test_models_that_cannot_be_fused_are_refused"

LAYERS_MUTANTS = (
    Mutant(
        "integrations/closed.py",
        "    del cls.__dataclass_fields__  # type: ignore[attr-defined]\n",
        "",
        "log-probs are cast to bf16",
        f"{FUSED}::test_a_batch_is_closed_to_wrappers",
    ),
    Mutant(
        "integrations/packing.py",
        '{**kwargs, "use_cache": False}',
        "kwargs",
        "a cache lets packed sequences see each other",
        SAME,
    ),
    Mutant(
        "integrations/packing.py",
        ".masked_fill(positions == 0, ignore_index)",
        "",
        "the first token is predicted from the sequence before",
        SAME,
    ),
    Mutant(
        "integrations/packing.py",
        "nn.functional.pad(x, (0, 1)) for x in values])[None, :-1]",
        "nn.functional.pad(x, (1, 0)) for x in values])[None, :-1]",
        "values lie one token late",
        f"{PACKED}::test_join_and_split_are_inverse",
    ),
    Mutant(
        "integrations/packing.py",
        "torch.tensor(lengths)).to(device)[None, :-1]",
        "torch.tensor(lengths)).to(device)[None, 1:]",
        "a token at a seam is of the next sequence",
        f"{PACKED}::test_join_and_split_are_inverse",
    ),
    Mutant(
        "integrations/packing.py",
        "difference[LENGTH:].max() <= noise",
        "0.0 * difference[LENGTH:].max() <= noise",
        "a state that runs on goes unseen",
        f"{LEAKS}[a state]",
    ),
    Mutant(
        "integrations/packing.py",
        "    elif is_flat:\n",
        "    elif False:\n",
        "a mask lets packed sequences see each other",
        f"{LEAKS}[a mask]",
    ),
    Mutant(
        "integrations/packing.py",
        "**dict(zip(names, args, strict=False)), ",
        "",
        "arguments by position go unseen",
        f"{LEAKS}[a mask by position]",
    ),
    Mutant(
        "integrations/packing.py",
        "found & mask[:, 1:].bool() & mask[:, :-1].bool()",
        "found",
        "left padding is taken for packing",
        f"{PACKED}::test_padded_rows_with_positions_of_their_own_are_taken",
    ),
    Mutant(
        "integrations/parts.py",
        'for mark in ("ds_id", "_hp_mapping")',
        'for mark in ("ds_id",)',
        "ZeRO-2 goes unseen",
        f"{REFUSED}[ZeRO-2]",
    ),
    Mutant(
        "integrations/wrappers.py",
        '    if _is_a(model, "FullyShardedDataParallel"):\n',
        "    if False:\n",
        "a model in FSDP1 is probed past its wrapper",
        f"{REFUSED}[FSDP1]",
    ),
)
