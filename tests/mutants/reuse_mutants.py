"""Seeded faults of what the recipe adds: reused rollouts, rectification by source, masks."""

from __future__ import annotations

from .mutants import Mutant

GRADIENTS, REUSE = "tests/gft/test_update_gradients.py", "tests/gft/test_reuse.py"

REUSE_MUTANTS = (
    Mutant(
        "gft/update.py",
        'tau = rows.spread([0.0 if m.source == "self" else config.tau for m in members])',
        'tau = rows.spread([config.tau if m.source == "self" else 0.0 for m in members])',
        "own responses are rectified and given ones are not",
        f"{GRADIENTS}::test_rectify_given_leaves_own_tokens_their_whole_gradient",
    ),
    Mutant(
        "gft/update.py",
        "m.truncated and m.source == ",
        "m.truncated or m.source == ",
        "every own response is masked",
        f"{GRADIENTS}::test_truncated_mask_neither_trains_nor_counts_own_responses_that_were_cut",
    ),
    Mutant(
        "gft/update.py",
        "counted = [m for m in trained_members(batch, config) if m.group not in flat]",
        "counted = [m for m in batch.members if m.group not in flat]",
        "masked responses are counted",
        f"{GRADIENTS}::test_truncated_mask_neither_trains_nor_counts_own_responses_that_were_cut",
    ),
    Mutant(
        "gft/update.py",
        "        old_logprobs=old,",
        "        old_logprobs=None,",
        "the ratio is 1 in every update",
        f"{GRADIENTS}::test_ratio_objectives_clip_the_ratio_to_the_recorded_log_probs",
    ),
    Mutant(
        "gft/update.py",
        "ratio = (old - sampled).exp()",
        "ratio = (sampled - old).exp()",
        "the importance weight is upside down",
        f"{GRADIENTS}::test_importance_weights_are_capped_and_of_own_tokens_alone",
    ),
    Mutant(
        "gft/update.py",
        "importance = torch.where(own, ratio, 1.0)",
        "importance = ratio",
        "given tokens have an importance weight",
        f"{GRADIENTS}::test_importance_weights_are_capped_and_of_own_tokens_alone",
    ),
    Mutant(
        "gft/update.py",
        "        ref_logprobs=ref,",
        "        ref_logprobs=old,",
        "the KL is to the policy that sampled",
        f"{GRADIENTS}::test_kl_pulls_every_token_towards_the_reference",
    ),
    Mutant(
        "gft/commands/train.py",
        "first = replace(config, model=config.reference or config.model, network=ModelConfig())",
        "first = replace(config, model=config.model, network=ModelConfig())",
        "the reference that was asked for is not read",
        "tests/gft/test_kl.py::test_kl_to_another_folder",
    ),
    Mutant(
        "gft/commands/train.py",
        "other = make_run_policy(first, None)",
        "other = policy",
        "the policy is its own reference",
        "tests/gft/test_kl.py::test_kl_to_another_folder",
    ),
    Mutant(
        "gft/update.py",
        "batch.flat_groups if learns_nothing and not config.group.count_flat else set()",
        "batch.flat_groups if not config.group.count_flat else set()",
        "the KL of flat groups is divided by the tokens of others",
        f"{GRADIENTS}::test_kl_counts_the_tokens_of_flat_groups_whatever_count_flat_says",
    ),
    Mutant(
        "gft/model/lora.py",
        "if missing or (",
        "if (",
        "a target that no layer has is passed over",
        "tests/gft/test_lora.py::test_add_lora_refuses_targets_that_peft_would_pass_over",
    ),
    Mutant(
        "gft/collate.py",
        "labels = [torch.tensor([IGNORE] * len(m.prompt) + m.response, device=device) for m in members]",
        "labels = sequences",
        "prompts of packed rows are trained on",
        f"{GRADIENTS}::test_packed_rows_have_the_gradients_of_padded_ones",
    ),
    Mutant(
        "gft/settings/config.py",
        "sequence_ids=sequence_ids)",
        "sequence_ids=True)",
        "a packed row is one sequence",
        f"{GRADIENTS}::test_ratio_objectives_clip_the_ratio_to_the_recorded_log_probs",
    ),
    Mutant(
        "gft/logprobs.py",
        "return [found[i] for i in range(len(members))]",
        "return list(found.values())",
        "log-probs are in the order of lengths",
        f"{GRADIENTS}::test_token_logprobs_are_those_of_the_models_own_logits",
    ),
    Mutant(
        "gft/sources.py",
        "(source == code)",
        "(source >= code)",
        "a source's means have others' tokens",
        f"{GRADIENTS}::test_metrics_by_source_are_means_over_their_tokens",
    ),
    Mutant(
        "gft/train.py",
        "first = state.used % config.reuse.rollout_steps * config.prompts_per_step",
        "first = 0",
        "every update has the same groups",
        f"{REUSE}::test_rollouts_serve_their_steps_in_turn_and_every_pass",
    ),
    Mutant(
        "gft/groups.py",
        "return Batch(members, [group for group in self.failed if group in groups])",
        "return Batch(members, self.failed)",
        "every step counts all failures",
        f"{REUSE}::test_failures_count_for_the_step_of_their_group",
    ),
    Mutant(
        "gft/runs/state.py",
        "        self.cursor += prompts\n",
        "",
        "a resumed run samples the same prompts again",
        f"{REUSE}::test_resume_between_updates_of_one_batch_is_bitwise",
    ),
    Mutant(
        "gft/runs/state.py",
        "        self.used += 1\n",
        "        self.used = 1\n",
        "rollouts are used for ever",
        f"{REUSE}::test_rollouts_serve_their_steps_in_turn_and_every_pass",
    ),
)
