"""Seeded faults of what changes from step to step, and of the numbers beside the loss."""

from __future__ import annotations

from .mutants import FAILURES, RATIOS, Mutant

GRAPHS = "tests/ops/compile/test_graphs.py"
STEPS = f"{GRAPHS}::test_steps_of_other_backends_make_two_graphs"
TWO_HUNDRED = f"{GRAPHS}::test_two_hundred_steps_make_two_graphs"
FORMULAS = "tests/engines/triton/test_formulas.py"
KERNELS = "tests/engines/triton/test_specialisation.py"
TAU = "tests/ops/test_tau_of_every_token.py"
TAU_PARITY = f"{TAU}::test_tau_of_every_token_is_a_call_for_every_tau"
CLIPPED = f"{RATIOS}::test_clip_fraction_counts_what_the_clip_altered"

STEP_MUTANTS = (
    Mutant(
        "ops/compile/logprob_op.py",
        "hidden.new_empty(targets.shape,",
        "hidden.new_empty(len(targets),",
        "a compiled program has a graph for every N",
        f"{STEPS}[log_probs-triton]",
    ),
    Mutant(
        "ops/compile/encode.py",
        "return [one * value for value in values]",
        "return [torch.full_like(one, value) for value in values]",
        "a compiled program has a graph for every tau",
        f"{TWO_HUNDRED}[every_objective-dynamic None]",
    ),
    Mutant(
        "ops/compile/trace.py",
        "objective, dtype = _with_open_numbers(arguments, scores.logprobs.device), scores.logprobs.dtype",
        "objective, dtype = arguments.objective, scores.logprobs.dtype",
        "a traced objective has a graph for every clip",
        f"{STEPS}[on_logits-eager]",
    ),
    Mutant(
        "losses/reductions.py",
        "return max(count, 1)",
        "return torch.as_tensor(count, device=mask.device).clamp(min=1)",
        "a compiled program has a graph for every count",
        f"{TWO_HUNDRED}[rewards_and_weights-dynamic True]",
    ),
    Mutant(
        "engines/triton/configs.py",
        'STEP_SIZES = ("N", "K", "B")',
        'STEP_SIZES = ("N", "B")',
        "a kernel is compiled for sizes that divide by 16, and for others",
        KERNELS,
    ),
    Mutant(
        "engines/triton/finalise.py",
        "    tau: tl.float64,\n",
        "    tau: tl.constexpr,\n",
        "a kernel is compiled for every tau",
        KERNELS,
    ),
    Mutant(
        "engines/triton/arguments.py",
        '"tau_ptr": given.get("tau"),',
        '"tau_ptr": None,',
        "the kernels forget the taus of the tokens",
        f"{TAU_PARITY}[triton-5-alone]",
    ),
    Mutant(
        "losses/objectives.py",
        "return tau if tau is not None and isinstance(self.tau, Tensor) and self.tau.ndim else self.tau",
        "return self.tau if tau is None else tau",
        "a term takes the taus of another",
        f"{TAU}::test_term_with_a_number_keeps_it_beside_one_with_a_tau_of_every_token",
    ),
    Mutant(
        "losses/ratios.py",
        "(ratio > 1 + self.clip_high) | (ratio < 1 - self.clip_low)",
        "(ratio > 1 + self.clip_high)",
        "clips from below are not counted",
        CLIPPED,
    ),
    Mutant(
        "ops/result.py",
        "torch.where(seen, x, 0).sum() / count for",
        "torch.where(seen, x, 0).sum() / count.clamp(min=1) for",
        "the entropy of no token is 0",
        f"{FAILURES}::test_linear_policy_loss_without_spread_is_zero_with_a_live_graph",
    ),
    Mutant(
        "engines/triton/formulas.py",
        "(logprobs >= LOWEST) & ~(k3 > most)",
        "(logprobs >= LOWEST)",
        "the kernel's KL has a slope beyond its clamp",
        f"{FORMULAS}::test_objective_terms_are_those_of_objectives[sft-kl clamped-torch.float32]",
    ),
    Mutant(
        "ops/result.py",
        "if not same:",
        "if False:",
        "a random objective is taken",
        "tests/ops/test_refusals.py::test_linear_policy_loss_refuses[objective is random]",
    ),
)
