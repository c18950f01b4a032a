"""A run of five steps that takes a second, and what must hold after whatever happened to it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from gft import cli
from gft.commands import train as run_command
from gft.demo import sort_letters
from gft.demo.base_model import tokenizer
from gft.metrics import read_metrics
from gft.runs.checkpoint import written_by
from gft.runs.record import read_record

from ..runs import numbers, weights
from .harness import Ended, forked

STEPS = 5


def tiny_model() -> Qwen2ForCausalLM:
    """Ten thousand parameters."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=29,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    return Qwen2ForCausalLM(config).eval()


def make_inputs(folder: Path) -> None:
    """A model, and twelve prompts with two responses each."""
    tiny_model().save_pretrained(folder / "base")
    tokenizer().save_pretrained(folder / "base")
    rows = [
        {
            "prompt": e.prompt,
            "completions": [r.text for r in e.responses],
            "sources": [r.source for r in e.responses],
            "solution": e.responses[0].text,  # so that experts score 1
        }
        for e in sort_letters.examples(12, seed=0, teachers=1)
    ]
    for name, part in (("train", rows[:10]), ("held-out", rows[10:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))


def command(folder: Path, out: Path, *more: str) -> list[str]:
    """Five steps of two groups, saved after 2 and 4, evaluated before, after 3 and at the end."""
    sizes = f"--steps {STEPS} --prompts-per-step 2 --experts 1 --teachers 1 --own 2 --micro-batch 3 --lr 1e-2"
    rest = "--max-new-tokens 3 --reward exact --save-every 2 --eval-every 3 --eval-samples 1"
    files = ["--model", f"{folder}/base", "--data", f"{folder}/train.jsonl", "--eval-data", f"{folder}/held-out.jsonl"]
    return ["train", *files, *sizes.split(), *rest.split(), "--objective", "gft", "--out", str(out), *more]


def start(folder: Path, out: Path, prepare: Callable[[], None], *more: str) -> Ended:
    """The run, in a process that `prepare` has laid traps in."""

    def work() -> None:
        run_command.run_figure = lambda rows, path: path  # drawing takes longer than the run
        prepare()
        cli.main(command(folder, out, *more))

    return forked(work, folder / f"{out.name}.log")


def go_on(folder: Path, out: Path, prepare: Callable[[], None] = lambda: None) -> Ended:
    """`gft train --resume` with nothing else."""

    def work() -> None:
        run_command.run_figure = lambda rows, path: path
        prepare()
        cli.main(["train", "--resume", "--out", str(out)])

    return forked(work, folder / f"{out.name}.resumed.log")


def outcome(out: Path) -> tuple[list[dict], dict[str, bytes]]:
    """Numbers and weights that a finished run left."""
    return numbers(read_metrics(out / "metrics.jsonl")), weights(out / "model")


def steps_saved(out: Path) -> list[int]:
    """Steps of the checkpoints that stand, newest first."""
    record = read_record(out)
    return [json.loads((path / "state.json").read_text())["step"] for path in written_by(out, record["run"])]
