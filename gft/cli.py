"""The commands of `gft`: their options, and how they end."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # models are local folders; nothing is fetched behind the user's back

import torch
import tyro
from transformers.utils import logging as transformers_logging

from .commands.data import CheckConfig, run_data_check
from .commands.evaluate import run_eval
from .commands.report import run_report
from .commands.sample import run_sample
from .commands.train import run_train
from .processes.distributed import named_rank
from .runs.record import read_record
from .settings.config import EMBEDDED, EvaluateConfig, ReportConfig, TrainConfig
from .settings.options import OptionError
from .settings.recipe import read_recipe, with_recipe
from .stop import Stopped, heed_signals
from .teacher.sample import SampleConfig

DESCRIPTION = "Group Fine-Tuning on fused head kernels. Without --model: the embedded task, with a recipe of its own."

# What files, options and models cause. Others are faults of ours, and keep their traceback.
FAULTS_OF_INPUT = (ValueError, TypeError, OSError, ImportError, RuntimeError, MemoryError)


def main(arguments: list[str] | None = None) -> None:
    """Entry point: `gft train [options]`, `gft eval [options]`, and so on.

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
        sys.exit(f"gft: {named_rank()}{_one_line(error)}{hint}")


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

    @app.command(name="report")
    def _report(config: tyro.conf.OmitArgPrefixes[ReportConfig]) -> None:
        """A page of runs: curves, a table, samples to read."""
        run_report(config)

    @app.command(name="sample")
    def _sample(config: tyro.conf.OmitArgPrefixes[SampleConfig]) -> None:
        """Sample a teacher's responses to the prompts of a file, and write groups for train."""
        run_sample(config)

    data = tyro.extras.SubcommandApp()
    app.command(data, name="data", help="Look at data before a run.")

    @data.command(name="check")
    def _check(config: tyro.conf.OmitArgPrefixes[CheckConfig]) -> None:
        """What a run would make of a data file."""
        run_data_check(config)

    app.cli(args=arguments, prog="gft", description=DESCRIPTION)


def _defaults(arguments: list[str]) -> TrainConfig:
    """What an option of train is that is not typed: with --resume, what it is in that run.

    A recipe's options stand over these. Without a model it is the recipe of the embedded task.
    --help shows the usual ones.
    """
    if arguments[:1] != ["train"]:
        return TrainConfig()
    typed = _typed(arguments, "--recipe")
    recipe = None if typed is None else Path(typed)
    given = {} if recipe is None else read_recipe(recipe)
    own_recipe = "model" in given or any(a.split("=")[0] in ("--model", "-h", "--help") for a in arguments)
    defaults = TrainConfig() if own_recipe else EMBEDDED
    if "--resume" in arguments:
        out = Path(_typed(arguments, "--out") or given.get("out", defaults.out))
        record = read_record(out)
        if record is not None:
            defaults = replace(record["config"], out=out)
    return defaults if recipe is None else with_recipe(defaults, recipe)


def _typed(arguments: list[str], name: str) -> str | None:
    """The last value that is typed for an option: --out runs/a, or --out=runs/a."""
    found = [
        b if a == name else a.removeprefix(f"{name}=") for a, b in pairwise([*arguments, ""]) if a.split("=")[0] == name
    ]
    return found[-1] if found else None


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
