"""The embedded comparison: one base, the same updates, three ways to use the given and the sampled
responses.
"""

from __future__ import annotations

import copy
import csv
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from rich.console import Console

from ..config import GroupConfig, TrainConfig
from ..metrics import MetricsLog, read_metrics
from ..policy import make_policy
from ..report import Progress, accuracy_table, comparison_figure
from ..rewards.pool import RewardPool
from ..train import train
from . import base_model, sort_letters

TRAIN_PROMPTS = 512
HELD_OUT_SEED = 1_000_003

METHODS = {
    "SFT on experts": ("sft", GroupConfig(1, 0, 0)),
    "SFT on the mix": ("sft", GroupConfig(1, 3, 0)),
    "GFT": ("gft", GroupConfig(1, 3, 4)),
}


def check_embedded(config: TrainConfig) -> None:
    """Refuse options that the embedded task would ignore."""
    if config.eval_data or config.device not in (None, "cpu") or config.dtype == "bfloat16":
        raise ValueError(
            "the embedded task runs on the CPU in float32 with held-out prompts of its own: --device, --dtype, "
            "--eval-data need --model."
        )


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
def compare(config: TrainConfig, console: Console) -> dict[str, dict]:
    """Pre-train the base, train every method from it, print the table and draw the curves.

    Returns:
        name -> {"greedy", "sampled", ...}, held-out accuracies after the run.
    """
    check_embedded(config)
    if config.group != GroupConfig() or config.evaluate.eval_prompts < 1:
        raise ValueError(
            "the comparison has groups of its own and evaluates: for group options or no evaluation, give an "
            "--objective."
        )
    with Progress("base", base_model.PRETRAIN_STEPS, console) as progress:
        start = time.perf_counter()
        base = base_model.pretrain(config.seed, lambda step, loss: progress.step({"nll": loss}))
        base_seconds = time.perf_counter() - start
    examples = sort_letters.examples(TRAIN_PROMPTS, seed=config.seed)
    held_out = sort_letters.examples(config.evaluate.eval_prompts, seed=HELD_OUT_SEED)
    results, curves = {}, {}
    with RewardPool(config.reward_name()) as rewards:
        for name, (objective, group) in METHODS.items():
            run = replace(config, objective=objective, group=group, out=config.out / name.lower().replace(" ", "-"))
            policy = make_policy(copy.deepcopy(base), base_model.tokenizer(), run.head_temperature())
            start = time.perf_counter()
            with MetricsLog(run.out / "metrics.jsonl") as log, Progress(name, run.steps, console) as progress:
                before, after = train(policy, examples, held_out, run, rewards, log, progress)
            curves[name] = read_metrics(run.out / "metrics.jsonl")
            results.setdefault("base", {**before._asdict(), "seconds": base_seconds})
            size = sum(run.composition()) * run.prompts_per_step
            results[name] = {
                **after._asdict(),
                "updates": run.steps,
                "sequences": size,
                "seconds": time.perf_counter() - start,
            }
    title = f"Held-out accuracy on {len(held_out)} prompts, seed {config.seed}"
    write_results(results, config)
    console.print(accuracy_table(list(results.items()), title, config.evaluate.eval_samples))
    figure = comparison_figure(curves, config.out / "curves.png", config.evaluate.eval_samples)
    console.print(f"curves: {figure}    models and metrics: {config.out}", highlight=False, soft_wrap=True)
    return results


def write_results(results: dict[str, dict], config: TrainConfig) -> None:
    """results.csv: a line a method."""
    with (config.out / "results.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            (
                "seed",
                "method",
                "greedy",
                f"mean_of_{config.evaluate.eval_samples}",
                "updates",
                "sequences_per_update",
                "seconds",
            )
        )
        for name, r in results.items():
            numbers = (
                f"{r['greedy']:.4f}",
                f"{r['sampled']:.4f}",
                r.get("updates", 0),
                r.get("sequences", 0),
                f"{r['seconds']:.1f}",
            )
            writer.writerow((config.seed, name, *numbers))
