"""Seeded faults of what is trained, and how: decay, rates, dropout, adapters."""

from __future__ import annotations

from .mutants import Mutant

OPTIM = "tests/gft/test_optim.py"

POLICY_MUTANTS = (
    Mutant(
        "gft/optim.py",
        "return parameter.ndim >= 2 and not",
        "return not",
        "norms decay",
        f"{OPTIM}::test_optimizer_step_shrinks_matrices_and_leaves_norms",
    ),
    Mutant(
        "gft/moments.py",
        "        for i, name in enumerate(names(optimizer))\n",
        "        for i, (name, _) in enumerate(model.named_parameters())\n",
        "moments are saved under the names of other weights",
        f"{OPTIM}::test_restore_gives_every_weight_its_own_moments",
    ),
    Mutant(
        "gft/optim.py",
        "done = (step - top) / (steps + 1 - top)",
        "done = step / (steps + 1)",
        "a schedule does not know of the warm-up",
        f"{OPTIM}::test_learning_rate_falls_to_its_minimum_after_the_last_step",
    ),
    Mutant(
        "gft/optim.py",
        "if p.requires_grad]",
        "]",
        "what is frozen is in the optimiser",
        f"{OPTIM}::test_make_optimizer_takes_what_is_trained",
    ),
)
