"""Seeded faults of the training loop: tokens, rewards, what is refused, what is kept."""

from __future__ import annotations

from .mutants import Mutant

ENCODING = "tests/gft/encoding"
SEAM, CONTROL = f"{ENCODING}/test_seam.py", f"{ENCODING}/test_control_tokens.py"
GFT = "tests/gft"

LOOP_MUTANTS = (
    Mutant(
        "gft/model/encoding.py",
        "return whole[len(tokens) :]",
        "return self.control.encode(after)",
        "a response is encoded alone",
        f"{SEAM}::test_text_and_response_are_the_whole_text",
    ),
    Mutant(
        "gft/model/encoding.py",
        "return self.eos if self._is_text(prompt) else self.template.closing.token",
        "return self.eos",
        "a chat ends in eos whatever its template",
        f"{SEAM}::test_the_end_is_that_of_the_text_or_of_the_chat",
    ),
    Mutant(
        "gft/model/encoding.py",
        "        while spelled :=",
        "        if spelled :=",
        "an end that is spelled twice is trained on",
        f"{SEAM}::test_an_end_that_is_spelled_out_is_the_end",
    ),
    Mutant(
        "gft/model/control_tokens.py",
        'return self.pattern.sub(lambda match: f"{TEXT}{self.number[match[0]]}{TEXT}", value)',
        "return value",
        "text of the data becomes a control token",
        f"{CONTROL}::test_messages_that_spell_control_tokens_have_those_of_the_template",
    ),
    Mutant(
        "gft/usable.py",
        "if need[0].prompt + need[1] > limit]",
        "if need[0].prompt + need[1] > limit + 1]",
        "one position more than the model has",
        f"{GFT}/test_usable.py::test_usable_examples_refuses_the_first_token_past_the_models_positions",
    ),
    Mutant(
        "gft/runs/run.py",
        "fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "pass",
        "two runs share a folder",
        f"{GFT}/test_run.py::test_run_folder_refuses_a_second_run_and_leaves_the_first_alone",
    ),
    Mutant(
        "gft/stop.py",
        "signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)",
        "signal.SIGTERM, signal.SIGUSR1)",
        "a closed terminal saves nothing",
        f"{GFT}/test_stop.py::test_held_holds_a_signal_back_to_its_end",
    ),
    Mutant(
        "gft/model/model_folder.py",
        '(report["missing_keys"], "missing',
        '([], "missing',
        "random weights are taken for a model's",
        f"{GFT}/test_model_folder.py::test_load_policy_refuses_in_one_line[a missing weight]",
    ),
    Mutant(
        "gft/settings/options.py",
        "(lambda x: 0 < x < math.inf,",
        "(lambda x: x > 0,",
        "an infinite learning rate is taken",
        f"{GFT}/test_options.py::test_every_number_is_refused_by_name_or_taken_on_purpose",
    ),
)
