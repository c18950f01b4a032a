"""Seeded faults of runs: what is saved, found again, gone on with, and when a signal is taken."""

from __future__ import annotations

from .mutants import Mutant

RESUME, CLI = "tests/gft/test_resume.py", "tests/gft/test_cli_resume.py"
FAULTS, DISKS = "tests/gft/faults/test_faults.py::test_run_goes_on_after", "tests/gft/faults/test_disks.py"
TWICE = "tests/gft/faults/test_second_signal.py"

RUN_MUTANTS = (
    Mutant(
        "gft/checkpoint.py",
        "            set_random_state(state.random, self.policy.device)\n",
        "            pass\n",
        "random numbers are not put back",
        f"{RESUME}::test_resume_after_every_step_is_bitwise_the_whole_run[6]",
    ),
    Mutant(
        "gft/moments.py",
        '"state": moments, "param_groups"',
        '"state": {}, "param_groups"',
        "AdamW begins anew",
        f"{RESUME}::test_resume_after_every_step_is_bitwise_the_whole_run[6]",
    ),
    Mutant(
        "gft/state.py",
        '{"accuracies": accuracies, "in_use": batch}',
        '{"accuracies": accuracies, "in_use": None}',
        "rollouts are lost with the update that they were for",
        f"{RESUME}::test_resume_with_rollouts_in_use_is_bitwise_and_samples_nothing_again[2]",
    ),
    Mutant(
        "gft/train.py",
        "islice(prompt_order(len(examples), config.seed), state.cursor, None)",
        "islice(prompt_order(len(examples), config.seed), 0, None)",
        "the order of prompts begins anew",
        f"{RESUME}::test_resume_after_every_step_is_bitwise_the_whole_run[6]",
    ),
    Mutant(
        "gft/metrics.py",
        "self.file.truncate(min(offset, self.path.stat().st_size))",
        "pass",
        "rows after the checkpoint stay",
        f"{CLI}::test_resume_cuts_off_what_was_written_after_the_checkpoint",
    ),
    Mutant(
        "gft/train.py",
        "state.accuracies[step], state.offset = found, log.offset",
        "state.accuracies[step] = found",
        "a checkpoint after an evaluation forgets its row",
        f"{RESUME}::test_resume_after_every_step_is_bitwise_the_whole_run[6]",
    ),
    Mutant(
        "gft/train.py",
        "state.is_changing = True",
        "pass",
        "half an update is saved",
        "tests/gft/faults/test_faults.py::test_error_within_an_update_saves_no_half_of_it",
    ),
    Mutant(
        "gft/stop.py",
        "if _noted is None or _noted:",
        "if True:",
        "a signal is taken within an update",
        f"{FAULTS}[SIGTERM before addcdiv_ 5]",
    ),
    Mutant(
        "gft/stop.py",
        "if _noted is None or _noted:",
        "if _noted is None:",
        "a second signal waits too",
        f"{TWICE}::test_second_signal_while_the_first_one_saves",
    ),
    Mutant(
        "gft/keeper.py",
        "if not (isinstance(error, Stopped) and error.at_once):",
        "if True:",
        "a second signal is held up by a save",
        f"{TWICE}::test_second_signal_leaves_at_once[gft.train.make_batch-4-signals6-75-saved6]",
    ),
    Mutant(
        "gft/checkpoint.py",
        "        if found != expected:",
        "        if found[0] != expected[0]:",
        "a flipped bit is not seen",
        f"{DISKS}::test_damaged_checkpoint_is_named_and_the_one_before_is_used[optimizer.safetensors-flip-"
        "optimizer.safetensors has changed]",
    ),
    Mutant(
        "gft/checkpoint.py",
        'if manifest.get("run") == run:',
        "if manifest:",
        "an overwritten run's checkpoint is gone on with",
        f"{DISKS}::test_checkpoints_of_a_run_that_was_overwritten_are_not_this_runs",
    ),
    Mutant(
        "gft/checkpoint.py",
        "for path in found[self.keep :] if self.keep else ():",
        "for path in found[: -self.keep] if self.keep else ():",
        "the newest are pruned",
        f"{RESUME}::test_resume_three_times_with_periodic_saves_is_bitwise",
    ),
    Mutant(
        "gft/folders.py",
        "            path.rename(old)\n        fresh.rename(path)",
        "            remove(path)\n        fresh.rename(path)",
        "the older checkpoint goes before the newer one stands",
        "tests/gft/faults/test_kills.py",
    ),
    Mutant(
        "gft/keeper.py",
        "        self.log.flush()  # first",
        "        pass  # first",
        "a checkpoint counts rows that are not on the disk",
        f"{DISKS}::test_no_checkpoint_counts_rows_that_are_not_on_the_disk",
    ),
    Mutant(
        "gft/metrics.py",
        "        with suppress(OSError):\n            self._write()",
        "        self._write()",
        "a full disk ends the run at a row",
        f"{DISKS}::test_metrics_that_do_not_fit_wait",
    ),
    Mutant(
        "gft/record.py",
        "if name not in FREE and value != own[name]:",
        'if name == "lr" and value != own[name]:',
        "another option is taken in silence",
        f"{CLI}::test_resume_refuses_another_option_by_name",
    ),
    Mutant(
        "gft/update.py",
        "summed, aux_loss = summed + share, aux_loss + share.item()",
        "aux_loss += share.item()",
        "router balancing is logged and not trained",
        "tests/gft/test_gradients.py::test_accumulate_gradients_has_router_balancing_by_the_share_of_a_micro_batch",
    ),
    Mutant(
        "gft/rewards/workers.py",
        "        self.process.wait()\n        end_marked(self.mark)",
        "        self.process.wait()",
        "a child in a session of its own outlives its worker",
        "tests/gft/rewards/test_workers.py::test_score_kills_what_a_reward_started_in_a_session_of_its_own",
    ),
    Mutant(
        "gft/keeper.py",
        "if is_new and not state.is_changing and",
        "if is_new and not state.is_changing and state.step < self.config.steps and",
        "an error after the last step loses it",
        "tests/gft/test_cli_resume.py::test_an_error_after_the_last_step_loses_nothing",
    ),
    Mutant(
        "gft/run.py",
        "not in (LOCK, hidden(path / RECORD, FRESH).name)",
        "!= LOCK",
        "a kill before run.json blocks the folder",
        "tests/gft/test_cli_resume.py::test_a_run_that_was_killed_before_it_had_a_name_begins",
    ),
    Mutant(
        "gft/checkpoint.py",
        'if not path.name.startswith("."):  # else',
        "if True:  # else",
        "a killed first save is a damaged checkpoint",
        "tests/gft/test_cli_resume.py::test_a_first_save_that_was_killed_is_no_damaged_checkpoint",
    ),
    Mutant(
        "gft/commands/train.py",
        "stop.resumable = record is not None or log.file is not None",
        'stop.resumable = (config.out / "run.json").exists()',
        "an overwritten run is taken for this one",
        "tests/gft/test_cli_resume.py::test_signal_before_the_loop_is_resumable_if_the_run_is",
    ),
)
