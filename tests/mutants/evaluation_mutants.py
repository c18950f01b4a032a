"""Seeded faults of evaluations, of what is kept of them, of loggers, and of the report."""

from __future__ import annotations

from .mutants import Mutant

EVALUATE, ESTIMATES, HELD_OUT = (f"tests/gft/test_{name}.py" for name in ("evaluate", "estimates", "held_out"))
DIVERGENCE, LOGGERS, CLI = (f"tests/gft/test_{name}.py" for name in ("divergence", "loggers", "cli_eval"))
RUNS, PAGE = "tests/gft/report/test_runs.py", "tests/gft/report/test_page.py"

EVALUATION_MUTANTS = (
    Mutant(
        "gft/evaluate.py",
        "STRIDE * number",
        "STRIDE * 0",
        "all batches have one seed, and draw the same",
        f"{EVALUATE}::test_evaluate_draws_anew_in_every_batch",
    ),
    Mutant(
        "gft/evaluate.py",
        "[-missing:]",
        "",
        "a batch that was cut short is kept twice",
        f"{EVALUATE}::test_evaluate_goes_on_behind_any_answer_with_the_same_ones[1]",
    ),
    Mutant(
        "gft/evaluate.py",
        "for place in prompts]\n    drawn",
        "for place in range(len(prompts))]\n    drawn",
        "a rank answers the prompts of another",
        f"{EVALUATE}::test_evaluate_of_one_rank_names_prompts_by_their_place_in_the_data",
    ),
    Mutant(
        "gft/estimates.py",
        "math.comb(count - right, k) / math.comb(count, k)",
        "((count - right) / count) ** k",
        "pass@k by the biased plug-in",
        f"{ESTIMATES}::test_pass_at_is_the_share_of_subsets_with_a_right_one[5]",
    ),
    Mutant(
        "gft/estimates.py",
        "    rewards = [[a.reward for a in group if a.reward is not None] for group in by_prompt(answers).values()]\n"
        "    return estimate([sum(r) for r in rewards], [len(r) for r in rewards])",
        "    rewards = [a.reward for a in answers if a.reward is not None]\n    return estimate(rewards)",
        "an interval draws answers and not prompts",
        f"{ESTIMATES}::test_mean_reward_draws_prompts",
    ),
    Mutant(
        "gft/estimates.py",
        "if pair[0] >= k",
        "if pair[0] > 0",
        "a prompt with fewer than k samples counts in pass@k",
        f"{ESTIMATES}::test_pass_at_k_counts_full_rewards_and_leaves_short_prompts_out",
    ),
    Mutant(
        "gft/held_out.py",
        'if not line.endswith(b"\\n"):\n                return',
        "if False:\n                return",
        "an answer without its line end is glued to the next",
        f"{HELD_OUT}::test_answer_log_drops_a_whole_answer_without_its_line_end",
    ),
    Mutant(
        "gft/held_out.py",
        "file.truncate(sum(size for _, size in found))",
        "pass",
        "half a line stays in the middle of the file",
        f"{HELD_OUT}::test_answer_log_goes_on_behind_the_last_whole_line",
    ),
    Mutant(
        "gft/held_out.py",
        "and a.sample < KEPT_SAMPLES",
        "",
        "a run keeps the texts of all samples",
        f"{HELD_OUT}::test_write_answers_keeps_some_texts_and_every_reward",
    ),
    Mutant(
        "gft/evaluation_folder.py",
        '"model": fingerprint(policy.model)',
        '"model": ""',
        "answers of two models are taken for those of one",
        f"{CLI}::test_eval_refuses_other_weights",
    ),
    Mutant(
        "gft/divergence.py",
        "log_r = np.array(q) - np.array(p)",
        "log_r = np.array(p) - np.array(q)",
        "the KL of the base to the model",
        f"{DIVERGENCE}::test_kl_to_base_is_the_mean_of_its_estimators",
    ),
    Mutant(
        "gft/loggers.py",
        "if place > self.given.get(name, -1):",
        "if True:",
        "a run that goes on logs steps twice",
        f"{LOGGERS}::test_run_that_goes_on_gives_no_row_twice",
    ),
    Mutant(
        "gft/loggers.py",
        "            self.working.pop(name, None)\n",
        "",
        "a logger that fails is told of at every step",
        f"{LOGGERS}::test_loggers_that_fail_are_told_once_and_left_alone",
    ),
    Mutant(
        "gft/loggers.py",
        "not wandb.login(prompt=False)",
        "not wandb.login()",
        "a run waits for somebody to log in",
        f"{LOGGERS}::test_wandb_is_offline_in_the_runs_folder_and_never_asks",
    ),
    Mutant(
        "gft/report/text.py",
        "return html.escape(visible(text))",
        "return visible(text)",
        "an answer is part of the page's HTML",
        f"{PAGE}::test_page_lets_no_text_act",
    ),
    Mutant(
        "gft/report/text.py",
        '"Cf", ',
        "",
        "an answer turns the direction of the page",
        f"{PAGE}::test_page_lets_no_text_act",
    ),
    Mutant(
        "gft/report/chart.py",
        "            is_open = False\n            continue",
        "            continue",
        "a curve is drawn across what is missing",
        f"{PAGE}::test_chart_breaks_its_line_at_a_gap_and_draws_lone_points",
    ),
    Mutant(
        "gft/report/runs.py",
        "            unread += 1\n",
        "            raise\n",
        "half a line hides a run",
        f"{RUNS}::test_read_runs_stands_a_line_that_is_none",
    ),
    Mutant(
        "gft/report/lines.py",
        "found.append(_line(run, key, panel, label, (hue, hue, dash)))",
        "found.append(_line(run, key, panel, label, (hue, dash, dash)))",
        "runs are told apart by colour alone",
        f"{RUNS}::test_lines_of_runs_differ_in_hue_and_mark_and_numbers_in_dash",
    ),
)
