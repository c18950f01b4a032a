"""The commands `gft train` and `gft eval`."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # models are local folders; nothing is fetched behind the user's back

import torch
import tyro
from rich.console import Console
from transformers.utils import logging as transformers_logging

from .checkpoint import MODEL, newest_whole
from .config import EMBEDDED, EvaluateConfig, TrainConfig
from .data.files import Example, load_examples
from .demo import sort_letters
from .demo.base_model import pretrain, tokenizer
from .demo.compare import HELD_OUT_SEED, check_embedded, check_usable, compare, embedded_examples
from .evaluate import evaluate
from .metrics import MetricsLog, read_metrics
from .options import OptionError, check_device, check_effects, check_engine, reward_pool
from .policy import Policy, load_policy, make_policy
from .record import read_record
from .report import Progress, accuracy_table, plain_console, run_figure, run_table
from .run import run_folder
from .stop import Stopped, heed_signals
from .train import train
from .usable import usable_held_out

DESCRIPTION = "Group Fine-Tuning on fused head kernels. Without --model: the embedded task, with a recipe of its own."

# What files, options and models cause. Others are faults of ours, and keep their traceback.
FAULTS_OF_INPUT = (ValueError, TypeError, OSError, ImportError, RuntimeError, MemoryError)


def run_train(config: TrainConfig) -> None:
    """gft train: a run with its table and curves, or the embedded comparison.

    What can be refused without a model is refused first, and the folder is claimed before the data
    are read.
    """
    console = plain_console()
    check_effects(config, EMBEDDED if config.model is None else TrainConfig())
    if config.resume and config.is_comparison():
        raise OptionError(
            f"--resume finds no run in {config.out}: give the --out of one. The comparison always starts anew."
        )
    if config.model is None:
        check_embedded(config)
    check_device(config.device)
    check_engine(config)
    with run_folder(config, partial(console.print, highlight=False, soft_wrap=True)):
        if config.is_comparison():
            compare(config, console)
        else:
            _run(config, console)


def _run(config: TrainConfig, console: Console) -> None:
    """One run, then its table and curves."""
    path, say = config.out / "metrics.jsonl", partial(console.print, highlight=False, soft_wrap=True)
    with reward_pool(config.reward_name()) as rewards, MetricsLog(path) as log:
        record = read_record(config.out) if config.resume else None
        try:
            start = newest_whole(config.out, record["run"], say) if record else None
            policy, examples, held_out = _materials(config, start)
            with Progress(config.objective or "gft", config.steps, console) as progress:
                train(policy, examples, held_out, config, rewards, log, progress, start)
        except Stopped as stop:
            stop.resumable = record is not None or log.file is not None
            raise
    rows = read_metrics(path)
    console.print(run_table(rows, f"{config.objective or 'gft'}, {config.steps} steps"))
    console.print(
        f"model: {config.out / 'model'}    metrics: {path}    curves: {run_figure(rows, config.out / 'curves.png')}",
        highlight=False,
        soft_wrap=True,
    )


def _materials(config: TrainConfig, start: Path | None) -> tuple[Policy, list[Example], list[Example]]:
    """Policy, training examples and held-out ones, from files or embedded.

    The policy is that of the checkpoint `start`, if there is one.
    """
    temperature = config.head_temperature()
    if config.model is None or config.data is None:
        examples, held_out = embedded_examples(config)
        check_usable(config, examples, held_out)
        if start is not None:
            return load_policy(start / MODEL, device="cpu", temperature=temperature), examples, held_out
        return make_policy(pretrain(config.seed), tokenizer(), temperature), examples, held_out
    examples = load_examples(config.data, max_bad_fraction=config.max_bad_fraction)
    examples, held_out = _hold_out(examples, config)
    folder = config.model if start is None else start / MODEL
    policy = load_policy(folder, device=config.device, dtype=config.dtype, temperature=temperature)
    return policy, examples, held_out


def _hold_out(examples: list[Example], config: TrainConfig) -> tuple[list[Example], list[Example]]:
    """Training examples and held-out ones.

    Raises:
        OptionError: the held-out ones would be more than a tenth of --data.
    """
    count = config.held_out_prompts()
    if count == 0:
        return examples, []
    if config.eval_data is not None:
        held_out = load_examples(
            config.eval_data, limit=count, max_bad_fraction=config.max_bad_fraction, seed=HELD_OUT_SEED
        )
        if len(held_out) < count and config.evaluate.eval_prompts is not None:
            print(
                f"warning: --eval-prompts is {count}, and {config.eval_data} has {len(held_out)}: all are used",
                file=sys.stderr,
            )
        return examples, held_out
    most = len(examples) // 10
    if count > most:
        raise OptionError(
            f"--eval-prompts is {count}, and at most a tenth of the {len(examples)} rows of {config.data} is held out, "
            f"which is {most}: ask for fewer, or give --eval-data."
        )
    return examples[:-count], examples[-count:]


def run_eval(config: EvaluateConfig) -> None:
    """gft eval: one table."""
    check_device(config.device)
    with reward_pool(config.reward_name()) as rewards:
        if config.data is None:
            examples = sort_letters.examples(config.prompts, HELD_OUT_SEED)
        else:
            examples = load_examples(
                config.data, limit=config.prompts, max_bad_fraction=config.max_bad_fraction, seed=HELD_OUT_SEED
            )
        policy = load_policy(config.model, device=config.device)
        examples = usable_held_out(policy, examples, config.max_new_tokens, config.max_bad_fraction)
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
    plain_console().print(
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
    heed_signals()
    try:
        _run_command(arguments, _defaults(arguments))
    except KeyboardInterrupt as stop:  # Stopped, or Python's own
        with suppress(OSError):
            print(f"gft: ended by {str(stop) or 'SIGINT'}", file=sys.stderr)
        _drop_unwritten()
        sys.exit(stop.exit_code if isinstance(stop, Stopped) else 130)
    except (OptionError, *FAULTS_OF_INPUT) as error:
        if os.environ.get("GFT_TRACEBACK"):
            raise
        hint = "" if isinstance(error, OptionError) else " (GFT_TRACEBACK=1 shows where)"
        sys.exit(f"gft: {_one_line(error)}{hint}")


def _run_command(arguments: list[str], defaults: TrainConfig) -> None:
    app = tyro.extras.SubcommandApp()

    @app.command(name="train")
    def _train(config: tyro.conf.OmitArgPrefixes[TrainConfig] = defaults) -> None:
        """Fine-tune a model. Without options, run the embedded comparison."""
        run_train(config)

    @app.command(name="eval")
    def _eval(config: tyro.conf.OmitArgPrefixes[EvaluateConfig]) -> None:
        """Accuracy of a model: greedy, and the mean of samples."""
        run_eval(config)

    app.cli(args=arguments, prog="gft", description=DESCRIPTION)


def _defaults(arguments: list[str]) -> TrainConfig:
    """What an option is that is not typed: with --resume, what it is in that run.

    Without --model it is the recipe of the embedded task. --help shows the usual ones.
    """
    if "--resume" in arguments:
        typed = [b if a == "--out" else a.removeprefix("--out=") for a, b in pairwise([*arguments, ""]) if _is_out(a)]
        out = Path(typed[-1]) if typed else TrainConfig().out
        record = read_record(out)
        if record is not None:
            return replace(record["config"], out=out)
    own_recipe = any(a.split("=")[0] in ("--model", "-h", "--help") for a in arguments)
    return TrainConfig() if own_recipe else EMBEDDED


def _is_out(argument: str) -> bool:
    return argument.split("=")[0] == "--out"


def _drop_unwritten() -> None:
    """Where the terminal is gone, what could not be written would change the exit code to 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _one_line(error: BaseException) -> str:
    """What an error says, on one line."""
    text = " ".join(line.strip() for line in str(error).splitlines() if line.strip()) or type(error).__name__
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return f"out of memory: lower --micro-batch if it was training, or --batch if it was sampling. {text}"
    return text


if __name__ == "__main__":
    main()
