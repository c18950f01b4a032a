"""gft train: a run with its table and curves, or the embedded comparison."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console

from ..collate import check_packed
from ..data.files import Example, load_examples
from ..demo.base_model import pretrain, tokenizer
from ..demo.compare import HELD_OUT_SEED, METHODS, check_embedded, check_usable, compare, embedded_examples
from ..evaluation.divergence import check_same_tokens
from ..loggers import check_installed
from ..metrics import metrics_log, read_metrics
from ..model.policy import Policy, configure, load_policy, make_policy
from ..processes.distributed import check_processes, is_first, joined, on_first
from ..reference import Reference, make_reference
from ..report import Progress, plain_console, run_figure, run_table
from ..reward_options import reward_pool
from ..rewards.pool import usable_cores
from ..runs.checkpoint import ADAPTER, MODEL, newest_whole
from ..runs.record import read_record
from ..runs.run import run_folder
from ..sampling.samplers import check_sampler
from ..settings.config import EMBEDDED, TrainConfig
from ..settings.options import OptionError, check_device, check_effects, check_engine
from ..settings.parts import ModelConfig
from ..stop import Stopped
from ..train import train


def run_train(config: TrainConfig) -> None:
    """Train by `config`.

    What can be refused without a model is refused first, and the folder is claimed before the data
    are read.
    """
    console = plain_console()
    say = partial(console.print, highlight=False, soft_wrap=True)
    with joined(config.device):
        _check(config)
        with run_folder(config, say) if is_first() else nullcontext():
            if config.is_comparison():
                compare(config, console, jobs=min(usable_cores(), len(METHODS)))
            else:
                _run(config, console)


def _check(config: TrainConfig) -> None:
    check_installed(config.log_to)
    check_effects(config, EMBEDDED if config.model is None else TrainConfig())
    if config.resume and config.is_comparison():
        raise OptionError(
            f"--resume finds no run in {config.out}: give the --out of one. The comparison always starts anew."
        )
    if config.model is None:
        check_embedded(config)
    check_processes(config)
    check_device(config.device)
    check_engine(config)
    device = "cpu" if config.model is None else config.device
    check_sampler(config.sampling.sampler, device, config.dtype, lora=config.network.lora is not None)


def _run(config: TrainConfig, console: Console) -> None:
    """One run, then its table and curves."""
    path, say = config.out / "metrics.jsonl", partial(console.print, highlight=False, soft_wrap=True)
    with reward_pool(config.reward_name(), config.limits) as rewards, metrics_log(path) as log:
        record = on_first(lambda: read_record(config.out) if config.resume else None)
        try:
            start = on_first(lambda: newest_whole(config.out, record["run"], say)) if record else None
            policy, examples, held_out = _materials(config, start)
            with Progress(config.objective or "gft", config.steps, console) as progress:
                reference = make_run_reference(config, policy)
                train(policy, examples, held_out, config, rewards, log, progress, start, reference)
        except Stopped as stop:
            stop.resumable = record is not None or log.file is not None
            raise
    if not is_first():
        return
    rows = read_metrics(path)
    console.print(run_table(rows, f"{config.objective or 'gft'}, {config.steps} steps"))
    console.print(
        f"model: {config.out / 'model'}    metrics: {path}    curves: {run_figure(rows, config.out / 'curves.png')}",
        highlight=False,
        soft_wrap=True,
    )


def _materials(config: TrainConfig, start: Path | None) -> tuple[Policy, list[Example], list[Example]]:
    """Policy, training examples and held-out ones, from files or embedded."""
    if config.data is None:
        examples, held_out = embedded_examples(config)
        check_usable(config, examples, held_out)
    else:
        examples = load_examples(
            config.data, max_bad_fraction=config.max_bad_fraction, prompt_suffix=config.prompt_suffix
        )
        examples, held_out = _hold_out(examples, config)
    return make_run_policy(config, start), examples, held_out


def make_run_policy(config: TrainConfig, start: Path | None) -> Policy:
    """The policy that a run begins with, or that of the checkpoint `start`."""
    lora = config.network.lora is not None
    folder = config.model if start is None or lora else start / MODEL
    temperature = config.head_temperature()
    if folder is None:
        policy = make_policy(pretrain(config.seed), tokenizer(), temperature)
    else:
        device = "cpu" if config.model is None else config.device
        policy = load_policy(folder, device=device, dtype=config.dtype, temperature=temperature)
        # vLLM reads the folder later, and the checkpoint may be gone by then.
        policy.model.name_or_path = str(config.model or folder)
    if config.optim.packed:
        check_packed(policy.model)
    adapter = start / ADAPTER if start is not None and lora else None
    return configure(policy, config.network, seed=config.seed, adapter=adapter)


def make_run_reference(config: TrainConfig, policy: Policy) -> Reference | None:
    """What KL is measured from: another model, or the one that the run began with.

    It is read again and not copied from the policy, which has learned since where a run goes on.
    """
    if config.reuse.kl is None:
        return None
    if config.reference is None and policy.adapter is not None:
        return make_reference(policy)
    first = replace(config, model=config.reference or config.model, network=ModelConfig())
    other = make_run_policy(first, None)
    check_same_tokens(policy, other, "--reference")
    return make_reference(policy, other)


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
            config.eval_data,
            limit=count,
            max_bad_fraction=config.max_bad_fraction,
            seed=HELD_OUT_SEED,
            prompt_suffix=config.prompt_suffix,
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
