"""Seeded faults of what other trainers are given: their loss, their section of a file."""

from __future__ import annotations

from .mutants import Mutant

TRAINER = "tests/integrations/test_trainer.py::test_policy_trainer"
PRIME_RL = "tests/integrations/test_prime_rl.py::test_policy_loss"
SWIFT = "tests/integrations/test_swift.py::test_policy_loss"
NAMED = "tests/integrations/test_named.py::test_named_objective"

TRAINER_MUTANTS = (
    Mutant(
        "integrations/trainer.py",
        "if result.aux_loss is None else result.loss + result.aux_loss",
        "if True else result.loss + result.aux_loss",
        "a Trainer's router balancing is dropped",
        f"{TRAINER}_trains_the_same_parameters",
    ),
    Mutant(
        "integrations/trainer.py",
        "loss = loss * self.accelerator.num_processes",
        "pass",
        "the mean of a Trainer's step is divided by the processes once more",
        f"{TRAINER}_of_one_process_of_two_is_the_trainers",
    ),
    Mutant(
        "integrations/trainer.py",
        "(base, PolicyLossTrainer)",
        "(PolicyLossTrainer, base)",
        "the loss stands in front of a library's compute_loss",
        f"{TRAINER}_trains_the_same_parameters",
    ),
    Mutant(
        "integrations/trainer.py",
        "x.float() * count",
        "x.float()",
        "a Trainer logs sums of means",
        f"{TRAINER}_logs_means_over_tokens",
    ),
    Mutant(
        "integrations/trainer.py",
        'if not sums and mode == "train":',
        "if False:",
        "a Trainer that computes its loss by itself goes unnoticed",
        f"{TRAINER}_says_where_its_loss_is_not_computed",
    ),
    Mutant(
        "integrations/trainer.py",
        'math.exp(min(logs[f"{prefix}nll"], 700.0))',
        'logs[f"{prefix}ppl"]',
        "the perplexity is that of the objective's loss",
        f"{TRAINER}_logs_means_over_tokens",
    ),
    Mutant(
        "integrations/trainer.py",
        '            self._policy_sums["eval"].clear()',
        "            pass",
        "a prediction is part of the next evaluation's metrics",
        f"{TRAINER}_logs_means_over_tokens",
    ),
    Mutant(
        "integrations/trainer.py",
        "            if self.compute_loss_func is not None:  #",
        "            if False:  #",
        "another function of the loss, set late, goes unnoticed",
        f"{TRAINER}_refuses_a_function_that_came_late",
    ),
    Mutant(
        "integrations/prime_rl.py",
        "inputs.trainer_logprobs[mask].float()",
        "inputs.trainer_logprobs.float()[mask] * 1.001",
        "prime-rl's log-probs are not its own",
        f"{PRIME_RL}_is_its_formula",
    ),
    Mutant(
        "integrations/prime_rl.py",
        '"old_logprobs": inputs.inference_logprobs',
        '"old_logprobs": inputs.trainer_logprobs.detach()',
        "prime-rl's ratio is to the policy itself",
        f"{PRIME_RL}_is_its_formula",
    ),
    Mutant(
        "integrations/prime_rl.py",
        "losses * inputs.loss_weights[mask]",
        "losses",
        "prime-rl's weights are dropped",
        f"{PRIME_RL}_is_its_formula",
    ),
    Mutant(
        "integrations/prime_rl.py",
        "max(len(logprobs), 1)",
        "len(logprobs)",
        "metrics of no token are NaN",
        f"{PRIME_RL}_of_no_token_is_zero_with_a_graph",
    ),
    Mutant(
        "integrations/swift.py",
        "weights = weights * loss_scale.flatten().to(weights)",
        "weights = weights * loss_scale.roll(-1).flatten().to(weights)",
        "ms-swift's scales are shifted twice",
        f"{SWIFT}_is_its_formula",
    ),
    Mutant(
        "integrations/swift.py",
        "F.pad(shift(labels), (0, 1), value=-100)",
        "F.pad(shift(labels), (1, 0), value=-100)",
        "ms-swift's targets are not shifted",
        f"{SWIFT}_is_its_formula",
    ),
    Mutant(
        "integrations/swift.py",
        "            backend=self.backend,\n        )",
        "            backend=self.backend,\n            inplace=True,\n        )",
        "ms-swift's logits are overwritten",
        f"{SWIFT}_is_its_formula",
    ),
    Mutant(
        "integrations/swift.py",
        '"train" if self.trainer.model.training else "eval"',
        '"train"',
        "ms-swift's evaluation is logged as training",
        f"{SWIFT}_logs_where_the_model_is",
    ),
    Mutant(
        "integrations/swift.py",
        "sequence_parallel_size > 1:",
        "sequence_parallel_size > 2:",
        "sequences cut in two are trained on",
        f"{SWIFT}_refuses_what_would_have_no_effect",
    ),
    Mutant(
        "integrations/named.py",
        "if isinstance(value, bool) or not",
        "if not",
        "a truth value is a number",
        f"{NAMED}_refuses",
    ),
    Mutant(
        "integrations/named.py",
        "OBJECTIVES[name](**numbers)",
        "OBJECTIVES[name]()",
        "an objective's numbers are dropped",
        f"{NAMED}_is_that_objective",
    ),
)
