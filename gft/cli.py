"""The commands `gft train` and `gft eval`."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # models are local folders; nothing is fetched behind the user's back

import tyro
from rich.console import Console
from transformers.utils import logging as transformers_logging

from .config import EMBEDDED, TrainConfig
from .data.files import Example, load_examples
from .demo.base_model import pretrain, tokenizer
from .demo.compare import HELD_OUT_SEED, TRAIN_PROMPTS, check_embedded, compare
from .demo.sort_letters import examples as embedded_examples
from .evaluate import evaluate
from .metrics import MetricsLog, read_metrics
from .policy import Policy, load_policy, make_policy
from .report import Progress, accuracy_table, run_figure, run_table
from .rewards.pool import RewardPool
from .train import train

DESCRIPTION = "Group Fine-Tuning on fused head kernels. Without --model: the embedded task, with a recipe of its own."


@dataclass(frozen=True)
class EvaluateConfig:
    """Accuracy of a model on held-out data: greedy, and the mean of samples."""

    model: Path
    """A local transformers folder."""
    data: str | None = None
    """As for train. None is the embedded task."""
    reward: str | None = None
    """As for train."""
    prompts: int = 64
    """Prompts to evaluate on, from the start of the data."""
    samples: int = 16
    """Samples a prompt, besides the greedy response."""
    temperature: float = 1.0
    """Temperature of the samples."""
    max_new_tokens: int = 512
    """Longer responses are cut. The built-in rewards then give 0."""
    batch: int = 128
    """Sequences generated at once."""
    seed: int = 0
    """Seed of the samples."""
    device: str | None = None
    """cuda, cpu, ... None takes the GPU where there is one."""


def run_train(config: TrainConfig) -> None:
    """gft train: a run with its table and curves, or the embedded comparison."""
    console = Console()
    if config.model is None and config.data is None and config.objective is None:
        compare(config, console)
        return
    policy, examples, held_out = _materials(config)
    config.out.mkdir(parents=True, exist_ok=True)
    path = config.out / "metrics.jsonl"
    with (
        RewardPool(config.reward_name()) as rewards,
        MetricsLog(path) as log,
        Progress(config.objective or "gft", config.steps, console) as progress,
    ):
        train(policy, examples, held_out, config, rewards, log, progress)
    rows = read_metrics(path)
    console.print(run_table(rows, f"{config.objective or 'gft'}, {config.steps} steps"))
    console.print(
        f"model: {config.out / 'model'}    metrics: {path}    curves: {run_figure(rows, config.out / 'curves.png')}",
        highlight=False,
        soft_wrap=True,
    )


def _materials(config: TrainConfig) -> tuple[Policy, list[Example], list[Example]]:
    """Policy, training examples and held-out ones, from files or embedded."""
    if (config.model is None) != (config.data is None):
        raise ValueError("give --model and --data together, or neither for the embedded task.")
    if config.model is None or config.data is None:
        check_embedded(config)
        policy = make_policy(pretrain(config.seed), tokenizer(), config.head_temperature())
        return (
            policy,
            embedded_examples(TRAIN_PROMPTS, config.seed),
            embedded_examples(config.evaluate.eval_prompts, HELD_OUT_SEED),
        )
    examples = load_examples(config.data)
    if config.eval_data is not None:
        held_out = load_examples(config.eval_data, limit=max(config.evaluate.eval_prompts, 1), seed=HELD_OUT_SEED)
        held_out = held_out[: config.evaluate.eval_prompts]
    else:
        count = min(config.evaluate.eval_prompts, len(examples) // 10)
        examples, held_out = examples[: len(examples) - count], examples[len(examples) - count :]
    policy = load_policy(config.model, device=config.device, dtype=config.dtype, temperature=config.head_temperature())
    return policy, examples, held_out


def run_eval(config: EvaluateConfig) -> None:
    """gft eval: one table."""
    policy = load_policy(config.model, device=config.device)
    if config.data is None:
        examples, reward = embedded_examples(config.prompts, HELD_OUT_SEED), EMBEDDED.reward_name()
    else:
        examples = load_examples(config.data, limit=config.prompts, seed=HELD_OUT_SEED)
        reward = TrainConfig(data=config.data, reward=config.reward).reward_name()
    with RewardPool(reward) as rewards:
        accuracy = evaluate(
            policy,
            examples,
            rewards,
            samples=config.samples,
            max_new_tokens=config.max_new_tokens,
            batch=config.batch,
            temperature=config.temperature,
            seed=config.seed,
        )
    Console().print(
        accuracy_table([(str(config.model), accuracy._asdict())], f"{len(examples)} prompts", config.samples)
    )
    if accuracy.errors:
        print(f"{accuracy.errors} responses could not be scored and are not in the means", file=sys.stderr)


def main(arguments: list[str] | None = None) -> None:
    """Entry point: `gft train [options]`, `gft eval [options]`.

    Bad input ends with one line, not a traceback.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    transformers_logging.disable_progress_bar()
    sys.path.insert(0, os.getcwd())  # --reward module:function may lie beside the user's data
    # Without --model the defaults are the recipe of the embedded task. --help shows the usual ones.
    own_recipe = any(a.split("=")[0] in ("--model", "-h", "--help") for a in arguments)
    defaults = TrainConfig() if own_recipe else EMBEDDED
    signal.signal(signal.SIGTERM, _interrupt)
    app = tyro.extras.SubcommandApp()

    @app.command(name="train")
    def _train(config: tyro.conf.OmitArgPrefixes[TrainConfig] = defaults) -> None:
        """Fine-tune a model. Without options, run the embedded comparison."""
        run_train(config)

    @app.command(name="eval")
    def _eval(config: tyro.conf.OmitArgPrefixes[EvaluateConfig]) -> None:
        """Accuracy of a model: greedy, and the mean of samples."""
        run_eval(config)

    try:
        app.cli(args=arguments, prog="gft", description=DESCRIPTION)
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        if os.environ.get("GFT_TRACEBACK"):
            raise
        sys.exit(f"gft: {error}\n(GFT_TRACEBACK=1 shows where)")
    except KeyboardInterrupt:
        print("gft: interrupted", file=sys.stderr)
        sys.exit(130)


def _interrupt(*_: object) -> None:
    """SIGTERM, which clusters send, ends a run as Ctrl-C does: with its weights saved."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
