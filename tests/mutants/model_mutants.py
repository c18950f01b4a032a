"""Seeded faults of what takes a model: `split_head`, `fuse_loss`."""

from __future__ import annotations

from .mutants import Mutant

FOLDER = "tests/integrations"
SPLIT, REFUSED, WRAPPED = (f"{FOLDER}/test_{x}.py" for x in ("split_head", "refusals", "wrappers"))
FUSED, UNFUSED = f"{FOLDER}/test_fuse.py", f"{FOLDER}/test_fuse_refusals.py"
OWN = f"{FUSED}::test_fused_loss_is_that_of_the_models_own_logits"

MODEL_MUTANTS = (
    Mutant(
        "integrations/probe.py",
        "large = raw.abs() < 10 * SMALLEST, raw.abs() > LARGEST / 10",
        "large = raw.abs() < 10 * SMALLEST, raw.abs() < 10 * SMALLEST",
        "a soft cap hides in small logits",
        f"{SPLIT}::test_split_head_sees_a_soft_cap_that_small_logits_hide",
    ),
    Mutant(
        "integrations/fuse.py",
        "    _warn_of_terms(bare, layer)\n",
        "",
        "a term that is not trained goes unsaid",
        f"{FUSED}::test_terms_of_the_models_own_loss_that_are_not_returned_are_named",
    ),
    Mutant(
        "integrations/verify.py",
        "(1e-4 if is_exact(hidden) else 5e-2) * difference[-1]",
        "1e4 * difference[-1]",
        "a model that sees its targets is taken",
        f"{REFUSED}::test_split_head_refuses_by_name[a bidirectional LM with a plain head]",
    ),
    Mutant(
        "integrations/wrappers.py",
        "for place, module in model.named_modules():",
        'for place, module in [("", model)]:',
        "a wrapper around the backbone goes unseen",
        f"{WRAPPED}::test_wrappers_that_synchronise_are_refused[DDP of the backbone]",
    ),
    Mutant(
        "integrations/parts.py",
        "layer = layer.modules_to_save[active[0]] if kept else layer.original_module",
        "layer = layer.original_module",
        "the adapter's own head is not trained",
        f"{WRAPPED}::test_a_head_of_the_adapters_own_is_the_one_taken",
    ),
    Mutant(
        "integrations/probe.py",
        "register_forward_hook(replaced, prepend=True)",
        "register_forward_hook(replaced)",
        "a transform in a hook goes unseen",
        f"{UNFUSED}::test_models_that_cannot_be_fused_are_refused[an unknown curve]",
    ),
    Mutant(
        "integrations/probe.py",
        "softcap = plateau if 0 < plateau < LARGEST / 100 * abs(slope) else None",
        "softcap = None",
        "no plateau is a soft cap",
        f"{OWN}[gemma2-softcap]",
    ),
    Mutant(
        "integrations/fuse.py",
        "head = replace(settings, bias=bias, temperature=temperature, low_rank=low_rank)",
        "head = replace(settings, bias=bias, low_rank=low_rank)",
        "a batch's temperature is ignored",
        f"{FUSED}::test_fused_loss_takes_ratios_penalties_and_a_tau_of_every_token",
    ),
    Mutant(
        "integrations/fuse.py",
        "return coefficient * found",
        "return found",
        "router balancing has no coefficient",
        f"{FUSED}::test_router_balancing_is_returned_beside_the_loss[mixtral]",
    ),
    Mutant(
        "integrations/fuse.py",
        "return (_new, (kind, self._had), *reduced[2:])",
        "return reduced",
        "a copy cannot be pickled",
        f"{FUSED}::test_a_copy_has_a_head_of_its_own",
    ),
    Mutant(
        "integrations/fuse.py",
        "            layer._visit = None\n",
        "            pass\n",
        "a failed call leaves its batch behind",
        f"{UNFUSED}::test_batches_of_another_shape_are_refused[targets of [B, T]]",
    ),
    Mutant(
        "integrations/batch.py",
        "return F.pad(x, (0, 1), value=value).flatten()",
        "return F.pad(x, (1, 0), value=value).flatten()",
        "rows and targets are shifted",
        f"{OWN}[llama]",
    ),
)
