"""The embedded comparison: one base, the same number of updates, five methods.

The methods differ in which responses they read: the expert's alone, those of the expert and the
teachers, these and the policy's own samples (GFT), or own samples alone (GRPO). GFT comes twice:
with every response rectified, as the paper has it, and with the given ones alone.
"""

from __future__ import annotations

import copy
import csv
import multiprocessing
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from io import TextIOWrapper
from pathlib import Path
from typing import cast

import torch
from rich.console import Console
from torch import Tensor
from transformers import Qwen2ForCausalLM
from transformers.utils import logging as transformers_logging

from ..data.files import Example
from ..metrics import MetricsLog, read_metrics
from ..model.policy import make_policy
from ..report import Progress, accuracy_table, comparison_figure
from ..reward_options import reward_pool
from ..rewards.pool import RewardPool
from ..settings.config import ObjectiveName, TrainConfig
from ..settings.options import OptionError
from ..settings.parts import GroupConfig
from ..train import train
from ..usable import usable_examples, usable_held_out
from . import base_model, sort_letters

TRAIN_PROMPTS = 512
HELD_OUT_SEED = 1_000_003

# Without GRPO the table would flatter GFT: this base samples a third of its answers right, and then
# own samples alone teach more than groups with given responses do.
METHODS: dict[str, tuple[ObjectiveName, GroupConfig]] = {
    "SFT on experts": ("sft", GroupConfig(experts=1, teachers=0, own=0)),
    "SFT on the mix": ("sft", GroupConfig(experts=1, teachers=3, own=0)),
    "GFT": ("gft", GroupConfig(experts=1, teachers=3, own=4)),
    "GFT, given": ("gft", GroupConfig(experts=1, teachers=3, own=4, rectify="given")),
    "GRPO": ("grpo", GroupConfig(experts=0, teachers=0, own=8)),
}


def check_embedded(config: TrainConfig) -> None:
    """Refuse options that the embedded task would ignore."""
    if config.eval_data or config.device not in (None, "cpu") or config.dtype == "bfloat16":
        raise OptionError(
            "the embedded task runs on the CPU in float32 with held-out prompts of its own: --device, --dtype, "
            "--eval-data need --model."
        )


def embedded_examples(config: TrainConfig) -> tuple[list[Example], list[Example]]:
    """The training examples of the embedded task, and held-out ones."""
    return (
        sort_letters.examples(TRAIN_PROMPTS, seed=config.seed),
        sort_letters.examples(config.held_out_prompts(), seed=HELD_OUT_SEED),
    )


def check_usable(config: TrainConfig, examples: list[Example], held_out: list[Example]) -> None:
    """Refuse before the pre-training what the run would refuse after it: any model will do."""
    policy = make_policy(base_model.untrained(config.seed), base_model.tokenizer())
    usable_examples(policy, examples, config, say=lambda note: None)
    usable_held_out(policy, held_out, config.sampling.max_new_tokens, config.max_bad_fraction)


@contextmanager
def one_thread() -> Iterator[None]:
    """The model is too small for threads to help; with one, the same seed gives the same numbers
    whatever the core count.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@one_thread()
def compare(config: TrainConfig, console: Console, jobs: int = 1) -> dict[str, dict]:
    """Pre-train the base, train a copy of it by every method, print the table and draw the curves.

    `jobs` methods are trained at once, in processes of their own. The numbers are the same.

    Returns:
        "base" and every method -> held-out accuracies after the run, and what the run read.
    """
    check_embedded(config)
    if config.group != GroupConfig() or config.held_out_prompts() < 1:
        raise OptionError(
            "the comparison has groups of its own and evaluates: for group options or no evaluation, give an "
            "--objective."
        )
    examples, held_out = embedded_examples(config)
    for name in METHODS:
        check_usable(run_config(config, name), examples, held_out)
    results: dict[str, dict] = {}
    with reward_pool(config.reward_name(), config.limits) as rewards:  # before the base: the name may be misspelt
        start = time.perf_counter()
        with Progress("base", base_model.PRETRAIN_STEPS, console) as progress:
            base = base_model.pretrain(config.seed, lambda step, loss: progress.step({"nll": loss}))
        base_seconds = time.perf_counter() - start
        if jobs > 1:
            trained = _side_by_side(base, config, jobs)
        else:
            trained = (_train_copy(base, config, rewards, name, console) for name in METHODS)
        for name, (before, after) in zip(METHODS, trained, strict=True):
            results.setdefault("base", {**before, "seconds": base_seconds})
            results[name] = after
    write_results(results, config)
    title = f"Held-out accuracy on {len(held_out)} prompts, seed {config.seed}"
    console.print(accuracy_table(list(results.items()), title, config.evaluate.eval_samples))
    figure = comparison_figure(read_curves(config), config.out / "curves.png", config.evaluate.eval_samples)
    console.print(f"curves: {figure}    models and metrics: {config.out}", highlight=False, soft_wrap=True)
    return results


def run_config(config: TrainConfig, name: str) -> TrainConfig:
    """The comparison's configuration, with the objective, groups and folder of one method."""
    objective, group = METHODS[name]
    return replace(
        config, objective=objective, group=group, out=config.out / name.lower().replace(",", "").replace(" ", "-")
    )


def _side_by_side(base: Qwen2ForCausalLM, config: TrainConfig, jobs: int) -> Iterator[tuple[dict, dict]]:
    """Every method in a process of its own, so many at once. What ends one ends them all."""
    fresh = multiprocessing.get_context("spawn")  # a fork of a process with torch's threads may hang
    with ProcessPoolExecutor(jobs, mp_context=fresh) as pool:
        try:
            for future in [pool.submit(_train_apart, base.state_dict(), config, name) for name in METHODS]:
                yield future.result()
        except BaseException:
            for process in multiprocessing.active_children():
                process.kill()  # the comparison has nothing to save: it always starts anew
            raise


@one_thread()
def _train_apart(weights: dict[str, Tensor], config: TrainConfig, name: str) -> tuple[dict, dict]:
    """Train a copy of the base in a process of its own, with one worker for the rewards."""
    transformers_logging.disable_progress_bar()
    cast(TextIOWrapper, sys.stdout).reconfigure(line_buffering=True)
    base = base_model.untrained(config.seed)
    base.load_state_dict(weights)
    lines = Console(markup=False, emoji=False, force_terminal=False)  # two bars at once would overwrite each other
    limits = replace(config.limits, reward_workers=config.limits.reward_workers or 1)
    with reward_pool(config.reward_name(), limits) as rewards:
        return _train_copy(base.eval(), config, rewards, name, lines)


def _train_copy(
    base: Qwen2ForCausalLM, comparison: TrainConfig, rewards: RewardPool, name: str, console: Console
) -> tuple[dict, dict]:
    """Train a copy of the base; its accuracies before, and after with what the run read."""
    config = run_config(comparison, name)
    examples, held_out = embedded_examples(comparison)
    policy = make_policy(copy.deepcopy(base), base_model.tokenizer(), config.head_temperature())
    start = time.perf_counter()
    with MetricsLog(_metrics_path(config)) as log, Progress(name, config.steps, console) as progress:
        before, after = train(policy, examples, held_out, config, rewards, log, progress)
    assert before is not None, "no held-out prompts"
    assert after is not None
    read = {
        "updates": config.steps,
        "sequences": sum(config.composition()) * config.prompts_per_step,
        "own": config.composition()[2] * config.prompts_per_step,
        "seconds": time.perf_counter() - start,
    }
    return before._asdict(), {**after._asdict(), **read}


def _metrics_path(config: TrainConfig) -> Path:
    return config.out / "metrics.jsonl"


def read_curves(config: TrainConfig) -> dict[str, list[dict]]:
    """Method -> the metrics of its run, once the comparison has run in this folder."""
    return {name: read_metrics(_metrics_path(run_config(config, name))) for name in METHODS}


def write_results(results: dict[str, dict], config: TrainConfig) -> None:
    """results.csv: a line for the base and one for every method."""
    sampled = f"mean_of_{config.evaluate.eval_samples}"
    names = ("seed", "method", "greedy", sampled, "updates", "sequences_per_update", "own_per_update", "seconds")
    with (config.out / "results.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        for name, r in results.items():
            accuracies = (f"{r['greedy']:.4f}", f"{r['sampled']:.4f}")
            read = (r.get(key, 0) for key in ("updates", "sequences", "own"))
            writer.writerow((config.seed, name, *accuracies, *read, f"{r['seconds']:.1f}"))
