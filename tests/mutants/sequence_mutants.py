"""Seeded faults of ratios of whole sequences and of importance weights."""

from __future__ import annotations

from .mutants import Mutant

SEQUENCES = "tests/ops/test_sequences.py"
LOOP = f"{SEQUENCES}::test_loss_and_gradients_are_those_of_a_loop_over_sequences"
IMPORTANCE = "tests/ops/test_importance_weights.py"
BATCH = "tests/integrations/test_batch.py"
TRL = "tests/integrations/trl/test_grpo.py::test_loss_and_gradients_are_trls"

SEQUENCE_MUTANTS = (
    Mutant(
        "losses/sequences.py",
        "return (sequence_sums(values, sequence_ids) / counts)",
        "return sequence_sums(values, sequence_ids)",
        "a sequence's log ratio is a sum",
        f"{LOOP}[eager-gspo-skip]",
    ),
    Mutant(
        "ops/sequences.py",
        "        return plan.weights * plan.objective(logprobs, **per_token)",
        "        return plan.objective(logprobs, **per_token)",
        "the second pass forgets the weights of tokens",
        f"{LOOP}[chunked-gspo-skip]",
    ),
    Mutant(
        "ops/sequences.py",
        "rows if plan.rows is None else plan.rows[rows]",
        "rows",
        "the second pass takes the rows of another",
        f"{SEQUENCES}::test_clipped_sequences_are_no_part_of_the_second_pass[chunked]",
    ),
    Mutant(
        "ops/sequences.py",
        "replace(plain, weights=-upstream)",
        "replace(plain, weights=upstream)",
        "logits go up the gradient",
        f"{LOOP}[chunked-gspo-skip]",
    ),
    Mutant(
        "ops/plan.py",
        "active = valid & (sequence_sums(active, ids) > 0)",
        "active = active & (sequence_sums(active, ids) > 0)",
        "tokens without an advantage are no part of their sequence",
        f"{SEQUENCES}::test_only_whole_sequences_are_skipped[chunked]",
    ),
    Mutant(
        "ops/compile/trace.py",
        "torch.where(active, ids, -1)",
        "ids",
        "masked rows of a compiled program are in a sequence",
        "tests/ops/compile/test_programs.py::test_compiled_program_is_one_graph_and_equals_eager"
        "[logits, sequences-chunked]",
    ),
    Mutant(
        "losses/ratios.py",
        "found = (ratio * _k3(logprobs, ref_logprobs))",
        "found = (ratio.detach() * _k3(logprobs, ref_logprobs))",
        "the correction by a sequence's ratio has no slope",
        f"{LOOP}[eager-with kl corrected-skip]",
    ),
    Mutant(
        "losses/objectives.py",
        "return times(weights, losses_of(self.objective, logprobs, per_token))",
        "return losses_of(self.objective, logprobs, per_token)",
        "importance weights are forgotten",
        f"{IMPORTANCE}::test_weights_multiply_the_loss_of_a_token[chunked-sft]",
    ),
    Mutant(
        "ops/validation.py",
        'NOT_NEGATIVE = ("sequence_ids", "importance_weights")',
        'NOT_NEGATIVE = ("sequence_ids",)',
        "a negative importance weight is taken",
        f"{IMPORTANCE}::test_weights_that_are_none_are_refused[negative]",
    ),
    Mutant(
        "integrations/batch.py",
        "return objective if isinstance(objective, KL) else Weighted(objective, weights)",
        "return Weighted(objective, weights)",
        "the penalty has the importance weights too",
        f"{BATCH}::test_importance_weights_multiply_all_but_the_penalty",
    ),
    Mutant(
        "integrations/batch.py",
        "row = torch.arange(len(like), device=like.device)[:, None]",
        "row = torch.arange(like.shape[1], device=like.device)[None]",
        "a column is a sequence",
        f"{BATCH}::test_row_is_a_sequence",
    ),
    Mutant(
        "integrations/trl/objective.py",
        "sequence_ids=corrected and _of_sequences(config)",
        "sequence_ids=False",
        "TRL's penalty is corrected by the tokens' ratio",
        f"{TRL}[llama-sequences, kl corrected]",
    ),
    Mutant(
        "integrations/trl/metrics.py",
        "if part.sequence_ids is not False:",
        "if False:",
        "a clip of sequences is logged as that of tokens",
        f"{TRL}[llama-sequences, wide]",
    ),
)
