"""Seeded faults of what samples responses, and of their log-probs."""

from __future__ import annotations

from .mutants import Mutant

ROLLOUT, SAMPLERS = "tests/gft/test_rollout.py", "tests/gft/test_samplers.py"
SAMPLE, RESUME = "tests/gft/sample/test_rows.py", "tests/gft/sample/test_resume.py"
RECIPE = "tests/gft/test_recipe.py"
RESUMED = f"{RESUME}::test_resume_writes_the_bytes_of_one_run"

SAMPLING_MUTANTS = (
    Mutant(
        "gft/sampling/rollout.py",
        "self.scores.logits / self.temperature",
        "self.scores.logits",
        "log-probs are those before the temperature",
        f"{ROLLOUT}::test_sample_gives_the_trainers_logprobs[0.6]",
    ),
    Mutant(
        "gft/sampling/rollout.py",
        "Rollout(tokens[:length], end is None, logprobs[:length])",
        "Rollout(tokens[:length], end is None, logprobs)",
        "padding has log-probs",
        f"{ROLLOUT}::test_sample_gives_the_trainers_logprobs[1.0]",
    ),
    Mutant(
        "gft/sampling/continuous.py",
        "        seed=seed,\n",
        "        seed=0,\n",
        "every call draws the same",
        f"{SAMPLERS}::test_draw_follows_the_seed_alone[continuous]",
    ),
    Mutant(
        "gft/sampling/continuous.py",
        "    with forked_random(policy):",
        "    if True:",
        "transformers leaves torch seeded",
        f"{SAMPLERS}::test_draw_takes_its_seeds_and_nothing_else_of_the_random_state[continuous-seeds0]",
    ),
    Mutant(
        "gft/sampling/continuous.py",
        "        check()\n",
        "",
        "a signal waits for all responses",
        f"{SAMPLERS}::test_a_signal_ends_the_sampling[continuous]",
    ),
    Mutant(
        "gft/sampling/continuous.py",
        "            model.train(training)\n",
        "            pass\n",
        "the model is left in eval mode",
        f"{SAMPLERS}::test_draw_leaves_the_model_as_it_was[continuous-True]",
    ),
    Mutant(
        "gft/sampling/vllm_sampler.py",
        '        logprobs_mode="processed_logprobs",\n',
        "",
        "vLLM's log-probs are those before the temperature",
        f"{SAMPLERS}::test_draw_gives_the_trainers_logprobs_of_every_token[vllm]",
    ),
    Mutant(
        "gft/sampling/vllm_sampler.py",
        "        engine.collective_rpc(",
        "        engine.asked or engine.collective_rpc(",
        "vLLM keeps the weights of the first step",
        f"{SAMPLERS}::test_draw_samples_the_current_weights[vllm]",
    ),
    Mutant(
        "gft/sampling/vllm_sampler.py",
        "        \"ignore_eos\": True,  # vLLM's notion of it; the policy's own end tokens are these:\n",
        "",
        "vLLM ends responses where the policy does not",
        f"{SAMPLERS}::test_draw_gives_the_end_token_or_says_truncated[vllm]",
    ),
    Mutant(
        "gft/sampling/vllm_sampler.py",
        "        engine.sleep(level=1)\n",
        "        pass\n",
        "vLLM keeps the trainer's memory",
        f"{SAMPLERS}::test_vllm_is_asked_for_the_trainers_distribution",
    ),
    Mutant(
        "gft/teacher/sample.py",
        "config.seed + SEED_STEP * file.done",
        "config.seed",
        "every batch of rows draws the same",
        f"{SAMPLE}::test_sample_keeps_the_given_responses_and_appends_scored_ones",
    ),
    Mutant(
        "gft/teacher/sample.py",
        '"completions": [r.text for r in example.responses]',
        '"completions": []',
        "given responses are lost",
        f"{SAMPLE}::test_sample_keeps_the_given_responses_and_appends_scored_ones",
    ),
    Mutant(
        "gft/teacher/sample.py",
        "config.keep_truncated or not rollout.truncated",
        "True",
        "responses without an end are kept",
        f"{SAMPLE}::test_sample_tells_what_became_of_the_responses",
    ),
    Mutant(
        "gft/teacher/sample.py",
        "append(score.value)",
        "append(score.value or 0.0)",
        "a checker that fails gives 0",
        f"{SAMPLE}::test_sample_gives_no_reward_where_the_checker_fails",
    ),
    Mutant(
        "gft/teacher/growing_file.py",
        "        rows -= rows % at_once\n",
        "        pass\n",
        "half a batch of rows stays",
        f"{RESUMED}[at byte 200]",
    ),
    Mutant(
        "gft/teacher/growing_file.py",
        "        file.truncate(length)\n",
        "        pass\n",
        "a torn row stays",
        f"{RESUMED}[at byte 200]",
    ),
    Mutant(
        "gft/teacher/growing_file.py",
        "            _check_same(beside, made_of, path)\n",
        "",
        "rows of other options follow",
        f"{RESUME}::test_resume_refuses_other_options",
    ),
    Mutant(
        "gft/settings/recipe.py",
        '        if heading not in ("", homes[name]):\n',
        "        if False:\n",
        "an option stands under any heading",
        f"{RECIPE}::test_recipe_refuses",
    ),
    Mutant(
        "gft/settings/recipe.py",
        "if choice in (int, str, bool) and type(value) is choice:",
        "if choice in (int, str, bool) and isinstance(value, choice):",
        "true is a number of steps",
        f"{RECIPE}::test_recipe_refuses",
    ),
    Mutant(
        "gft/settings/recipe.py",
        "            return float(value)\n",
        "            return value\n",
        "a learning rate is a whole number",
        f"{RECIPE}::test_recipe_takes_flat_keys_headings_and_hyphens",
    ),
    Mutant(
        "gft/cli.py",
        "return defaults if recipe is None else with_recipe(defaults, recipe)",
        "return defaults if recipe is None else with_recipe(TrainConfig(), recipe)",
        "a recipe forgets the embedded task and the run that goes on",
        f"{RECIPE}::test_recipe_without_a_model_stands_over_the_embedded_task",
    ),
    Mutant(
        "gft/cli.py",
        'given.get("out", defaults.out)',
        "defaults.out",
        "a recipe's folder is not looked into",
        f"{RECIPE}::test_recipe_may_name_the_run_to_resume",
    ),
)
