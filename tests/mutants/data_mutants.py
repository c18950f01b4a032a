"""Seeded faults of data and rewards: what a row becomes, what a response is given, what is told."""

from __future__ import annotations

from .mutants import Mutant

TERMS, SIGNATURES, HOSTILE = (f"tests/gft/rewards/test_{name}.py" for name in ("terms", "signatures", "hostile"))
FORMATS, CHECK, OPTIONS = (f"tests/gft/data/test_{name}.py" for name in ("formats", "check", "options_of_data"))
SURVEY, GROUPS = "tests/gft/test_survey.py", "tests/gft/test_groups.py"

DATA_MUTANTS = (
    Mutant(
        "gft/rewards/pool.py",
        "sum(term.weight * parts[term.name]",
        "sum(parts[term.name]",
        "weights of a sum are ignored",
        f"{TERMS}::test_score_adds_the_terms_by_their_weights_and_keeps_each",
    ),
    Mutant(
        "gft/rewards/pool.py",
        "if one.error is not None:",
        "if one.error is not None and not several:",
        "a sum goes on without its failed term",
        f"{TERMS}::test_score_of_a_response_whose_one_term_failed_is_a_failure_of_that_name",
    ),
    Mutant(
        "gft/rewards/pool.py",
        "len(os.sched_getaffinity(0))",
        "os.cpu_count()",
        "workers for cores that the process may not use",
        f"{TERMS}::test_usable_cores_are_those_of_this_process",
    ),
    Mutant(
        "gft/rewards/signatures.py",
        'text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]',
        "text",
        "a completion of a chat is handed over as text",
        f"{SIGNATURES}::test_caller_of_hands_a_chats_completion_over_as_a_list_of_messages",
    ),
    Mutant(
        "gft/rewards/signatures.py",
        "if returned[0] is None:",
        "if False:",
        "a reward that does not apply is a failure",
        f"{SIGNATURES}::test_a_reward_of_none_in_a_list_does_not_apply",
    ),
    Mutant(
        "gft/rewards/signatures.py",
        "    if missing:\n",
        "    if False:\n",
        "arguments that nobody has are asked for at the first response",
        f"{SIGNATURES}::test_caller_of_refuses_other_signatures_and_says_how",
    ),
    Mutant(
        "gft/rewards/serve.py",
        "if os.getpid() != worker:",
        "if False:",
        "a fork of a reward function answers too",
        f"{HOSTILE}::test_a_fork_that_comes_back_ends",
    ),
    Mutant(
        "gft/rewards/reap.py",
        "if not blank - _blank:",
        "if True:",
        "a program that is just starting is overlooked and left behind",
        "tests/gft/rewards/test_reap.py::test_end_marked_looks_again_at_who_starts_a_program",
    ),
    Mutant(
        "gft/rewards/judge/verdict.py",
        '        _read(text, "solution", flips)\n',
        "        pass\n",
        "a solution that no answer can be compared with passes",
        "tests/gft/rewards/test_math.py::test_check_math_names_what_no_answer_can_be_compared_with",
    ),
    Mutant(
        "gft/answers.py",
        "return found[-1] if found else None",
        "return found[0] if found else None",
        "the first box is the answer of a worked solution",
        f"{FORMATS}::test_load_examples_takes_the_last_box_of_a_worked_solution",
    ),
    Mutant(
        "gft/answers.py",
        "_boxes(text, distinct=False)",
        "_boxes(text)",
        "a box that stood before is not the last one",
        f"{FORMATS}::test_load_examples_takes_the_last_box_of_a_worked_solution",
    ),
    Mutant(
        "gft/data/formats.py",
        "text if text.endswith(suffix.strip()) else ",
        "",
        "a suffix stands twice",
        f"{FORMATS}::test_prompt_suffix_does_not_stand_twice",
    ),
    Mutant(
        "gft/data/formats.py",
        "text.removesuffix(GSM8K_INSTRUCTION).rstrip()",
        "text.rstrip()",
        "GSM8K's instruction stays beside a suffix",
        f"{FORMATS}::test_prompt_suffix_takes_the_place_of_gsm8ks_instruction",
    ),
    Mutant(
        "gft/commands/evaluate.py",
        "prompt_suffix=config.prompt_suffix",
        "prompt_suffix=None",
        "evaluation has no suffix",
        f"{OPTIONS}::test_prompt_suffix_is_put_on_training_held_out_and_evaluation_data",
    ),
    Mutant(
        "gft/groups.py",
        'm.truncated and m.source == "self"',
        "m.truncated",
        "a right response that is cut is scored as a mistake",
        f"{GROUPS}::test_make_batch_cuts_a_long_response_and_scores_its_whole_text",
    ),
    Mutant(
        "gft/survey.py",
        'if not long or sampling.long_given == "cut":',
        "if True:",
        "long responses are never dropped",
        f"{SURVEY}::test_usable_examples_drops_long_responses_and_the_next_ones_take_their_place",
    ),
    Mutant(
        "gft/survey.py",
        "        dropped += long\n",
        "",
        "dropped responses are not told",
        f"{SURVEY}::test_usable_examples_drops_long_responses_and_the_next_ones_take_their_place",
    ),
    Mutant(
        "gft/survey.py",
        "if own or m.responses or not m.long",
        "if True",
        "an example without any response stays",
        f"{SURVEY}::test_usable_examples_leaves_out_examples_that_lose_all_their_responses",
    ),
    Mutant(
        "gft/findings.py",
        "given.reward == 0]",
        "given.reward is None]",
        "wrong experts are not counted",
        f"{CHECK}::test_check_shows_what_a_run_would_leave_out",
    ),
    Mutant(
        "gft/findings.py",
        "refusals.append(str(error))",
        "pass",
        "data that a run refuses pass the check",
        f"{CHECK}::test_check_ends_with_1_where_the_run_would_refuse_the_data",
    ),
    Mutant(
        "gft/commands/data.py",
        "tokens[: config.sampling.max_given_tokens]",
        "tokens",
        "tokens that are cut off are shown as trained on",
        f"{CHECK}::test_check_marks_what_is_trained_on",
    ),
    Mutant(
        "gft/policy.py",
        "        _check_vocabulary(tokenizer, model)\n",
        "",
        "a folder whose tokenizer is another model's passes the check",
        f"{CHECK}::test_load_encoder_reads_and_refuses_as_load_policy",
    ),
    Mutant(
        "gft/update.py",
        'f"reward_{m.source}": m.reward, **parts}',
        'f"reward_{m.source}": m.reward}',
        "terms of a sum are in no metric",
        f"{GROUPS}::test_make_batch_keeps_every_term_of_a_sum",
    ),
    Mutant(
        "gft/record.py",
        ', "limits.reward_workers")',
        ")",
        "a run cannot go on with another number of workers",
        f"{OPTIONS}::test_resume_takes_other_workers_and_no_other_time",
    ),
    Mutant(
        "gft/options.py",
        "and not in_workers:",
        "and False:",
        "limits of a reward without workers pass",
        "tests/gft/test_options.py::test_check_effects_refuses_what_would_do_nothing",
    ),
)
