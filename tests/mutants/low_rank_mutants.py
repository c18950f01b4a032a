"""Seeded faults of a low-rank addition to the head, and of LoRA on a model's head."""

from __future__ import annotations

from .mutants import Mutant

OPS, HEAD = "tests/ops/test_low_rank.py", "tests/integrations/test_lora_head.py"
LOSS = f"{OPS}::test_linear_policy_loss_is_that_of_the_concatenated_head"
WANTED = f"{OPS}::test_what_nobody_wants_is_neither_formed_nor_changes_the_rest"
MODELS = f"{HEAD}::test_lora_on_the_head_is_exact"

LOW_RANK_MUTANTS = (
    Mutant(
        "engines/triton/tile.py",
        "K, V, R, stride_lv, False, BLOCK_R)",
        "K, V, R, stride_lv, True, BLOCK_R)",
        "the last step along the rank is not masked",
        f"{LOSS}[plain-3-triton]",
    ),
    Mutant(
        "engines/triton/forward.py",
        "for start in range(0, R, BLOCK_D):",
        "for start in range(0, 0, BLOCK_D):",
        "the target's logit is without the low-rank addition",
        f"{LOSS}[plain-3-triton]",
    ),
    Mutant(
        "engines/chunked.py",
        "z.addmm_(low_hidden * factor, low_weight.T)",
        "z.addmm_(low_hidden, low_weight.T)",
        "the low-rank addition goes past the scale",
        f"{LOSS}[granite-3-chunked]",
    ),
    Mutant(
        "engines/chunked.py",
        "        gap += _row_dot(low_hidden, low)\n",
        "",
        "the entropy is without the low-rank addition",
        f"{LOSS}[plain-3-chunked]",
    ),
    Mutant(
        "engines/accumulate.py",
        "self._set_rows(self.low_hidden, chunk, low_weight)",
        "None",
        "no gradient reaches lora_A",
        f"{LOSS}[plain-3-chunked]",
    ),
    Mutant(
        "engines/accumulate.py",
        "        if self.wanted[1]:\n",
        "        if self.wanted[1] or self.wanted[4]:\n",
        "the gradient of a frozen head is formed",
        f"{WANTED}[chunked-LoRA]",
    ),
    Mutant(
        "engines/accumulate.py",
        'name in ("hidden", "low_hidden")',
        'name == "hidden"',
        "the gradient of low_hidden is that of a rank's own columns",
        "tests/parallel/test_vocabulary_shard.py::test_ranks_equal_one_process_in_every_output_and_gradient"
        "[chunked-two-fp64]",
    ),
    Mutant(
        "integrations/lora.py",
        "(a(layer.lora_dropout[name](hidden)) * scaling)",
        "(a(hidden) * scaling)",
        "LoRA's dropout is left out",
        f"{HEAD}::test_dropout_is_the_one_that_peft_draws",
    ),
    Mutant(
        "integrations/lora.py",
        "if layer.disable_adapters or layer.merged:",
        "if layer.disable_adapters:",
        "a merged adapter counts twice",
        f"{HEAD}::test_lora_added_after_fuse_loss_disabled_merged_and_unloaded",
    ),
    Mutant(
        "integrations/lora.py",
        "        if variant is not None:\n",
        "        if variant is None and False:\n",
        "DoRA is taken for LoRA",
        f"{HEAD}::test_other_adapters_on_the_head_are_refused[DoRA]",
    ),
    Mutant(
        "integrations/lora.py",
        "bias = b.bias * scaling if bias is None else bias + b.bias * scaling",
        "bias = b.bias if bias is None else bias + b.bias",
        "the bias of lora_B goes unscaled",
        f"{MODELS}[a bias of lora_B]",
    ),
)
