"""Seeded faults of what samples responses, and of their log-probs."""

from __future__ import annotations

from .mutants import Mutant

ROLLOUT, SAMPLERS = "tests/gft/test_rollout.py", "tests/gft/test_samplers.py"

SAMPLING_MUTANTS = (
    Mutant(
        "gft/rollout.py",
        "self.scores.logits / self.temperature",
        "self.scores.logits",
        "log-probs are those before the temperature",
        f"{ROLLOUT}::test_sample_gives_the_trainers_logprobs[0.6]",
    ),
    Mutant(
        "gft/rollout.py",
        "Rollout(tokens[:length], end is None, logprobs[:length])",
        "Rollout(tokens[:length], end is None, logprobs)",
        "padding has log-probs",
        f"{ROLLOUT}::test_sample_gives_the_trainers_logprobs[1.0]",
    ),
    Mutant(
        "gft/rollout_continuous.py",
        "        seed=seed,\n",
        "        seed=0,\n",
        "every call draws the same",
        f"{SAMPLERS}::test_draw_follows_the_seed_alone[continuous]",
    ),
    Mutant(
        "gft/rollout_continuous.py",
        "    with forked_random(policy):",
        "    if True:",
        "transformers leaves torch seeded",
        f"{SAMPLERS}::test_draw_takes_its_seeds_and_nothing_else_of_the_random_state[continuous-seeds0]",
    ),
    Mutant(
        "gft/rollout_continuous.py",
        "        check()\n",
        "",
        "a signal waits for all responses",
        f"{SAMPLERS}::test_a_signal_ends_the_sampling[continuous]",
    ),
    Mutant(
        "gft/rollout_continuous.py",
        "            model.train(training)\n",
        "            pass\n",
        "the model is left in eval mode",
        f"{SAMPLERS}::test_draw_leaves_the_model_as_it_was[continuous-True]",
    ),
    Mutant(
        "gft/rollout_vllm.py",
        '        logprobs_mode="processed_logprobs",\n',
        "",
        "vLLM's log-probs are those before the temperature",
        f"{SAMPLERS}::test_draw_gives_the_trainers_logprobs_of_every_token[vllm]",
    ),
    Mutant(
        "gft/rollout_vllm.py",
        "        engine.collective_rpc(",
        "        engine.asked or engine.collective_rpc(",
        "vLLM keeps the weights of the first step",
        f"{SAMPLERS}::test_draw_samples_the_current_weights[vllm]",
    ),
    Mutant(
        "gft/rollout_vllm.py",
        "        \"ignore_eos\": True,  # vLLM's notion of it; the policy's own end tokens are these:\n",
        "",
        "vLLM ends responses where the policy does not",
        f"{SAMPLERS}::test_draw_gives_the_end_token_or_says_truncated[vllm]",
    ),
    Mutant(
        "gft/rollout_vllm.py",
        "        engine.sleep(level=1)\n",
        "        pass\n",
        "vLLM keeps the trainer's memory",
        f"{SAMPLERS}::test_vllm_is_asked_for_the_trainers_distribution",
    ),
)
