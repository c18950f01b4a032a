"""python -m benchmarks.loop: optimiser steps a second of gft's own training step with other heads
in place of its own.

The responses are given, so nothing is sampled. gft leaves prompts and the groups without spread out
for every head alike: the heads see the same rows, and what skipping rows saves a trainer that
scores them is not in these figures.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from gft.config import GroupConfig, OptimConfig, SamplingConfig, TrainConfig
from gft.data.files import Example
from gft.groups import Member
from gft.policy import Policy, load_policy
from gft.rewards.pool import RewardPool
from gft.train import train_step
from gft_kernels import linear_policy_loss
from gft_kernels.integrations.hf import split_head

from .heads.ours import eager_logprobs
from .record import MACHINE, RESULTS, ROOT, append_rows, describe_machine
from .timing.gate import GATE
from .timing.memory import MIB, peak_rss, reset_peak, rss
from .timing.runner import attempt

FIELDS = (
    *MACHINE,
    "model",
    "tokens",
    "micro_batch",
    "provider",
    "steps_per_s",
    "p20",
    "p80",
    "ratio_to_eager",
    "peak_mib",
    "loss",
    "grad_norm",
    "note",
)
COLUMNS = ("provider", "steps_per_s", "p20", "p80", "ratio_to_eager", "peak_mib", "loss", "grad_norm")
PROMPT, LENGTHS = 32, (64, 96, 128, 160)  # tokens of a group's prompt, and of its responses

Loss = Callable[..., object]  # called as gft_kernels.linear_policy_loss; an object with .loss and .stats


def peer(token_losses: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Loss:
    """A head that returns the negative log-probs of the targets, with the objective on top, in the
    place of linear_policy_loss.
    """

    def loss(hidden, weight, targets, advantages, *, objective, token_weights, head, backend):
        assert (head.bias, head.scale, head.softcap, head.temperature) == (None, 1.0, None, 1.0)
        logprobs = -token_losses(hidden, weight, targets)
        losses = objective(logprobs, advantages=advantages, old_logprobs=None, ref_logprobs=None)
        stats = {"nll": -logprobs.detach().mean(), "active_tokens": torch.tensor(len(targets))}
        return SimpleNamespace(loss=(token_weights * losses).sum(), stats=stats)

    return loss


def eager() -> Loss:
    """Full logits, as a transformers model computes them."""
    return peer(lambda hidden, weight, targets: -eager_logprobs(hidden, weight, targets))


def liger() -> Loss:
    from liger_kernel.ops import LigerFusedLinearScaledCrossEntropyFunction

    return peer(LigerFusedLinearScaledCrossEntropyFunction.apply)


HEADS: dict[str, Callable[[], Loss]] = {
    "eager": eager,
    "gft-kernels": lambda: linear_policy_loss,
    "liger": liger,
}  # eager is the gate's


@dataclass(frozen=True)
class Task:
    """A model by its folder, or a small random one, and a batch: the same for every head."""

    model: Path | None = None
    device: str = "cpu"
    tiny: bool = False
    groups: int = 4
    micro_batch: int = 8  # sequences

    def name(self) -> str:
        return self.model.name if self.model else "random-tiny" if self.tiny else "random-256x4-v32768"

    def lengths(self) -> tuple[int, ...]:
        return tuple(n // 16 for n in LENGTHS) if self.tiny else LENGTHS

    def config(self) -> TrainConfig:
        sampling = SamplingConfig(max_given_tokens=max(LENGTHS))
        return TrainConfig(
            objective="gft",
            group=GroupConfig(own=0),
            sampling=sampling,
            optim=OptimConfig(micro_batch=self.micro_batch),
        )

    def policy(self) -> Policy:
        if self.model:
            return load_policy(self.model, device=self.device)
        hidden, layers, vocabulary = (32, 2, 512) if self.tiny else (256, 4, 32768)
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocabulary,
                hidden_size=hidden,
                intermediate_size=hidden * 8 // 3,
                num_hidden_layers=layers,
                num_attention_heads=4,
                tie_word_embeddings=True,
            )
        ).to(self.device)
        tokenizer = SimpleNamespace(pad_token_id=0)  # all that a step on given responses asks of it
        return Policy(model, tokenizer, *split_head(model), torch.bfloat16 if self.device == "cuda" else torch.float32)


def members(vocabulary: int, groups: int, lengths: Sequence[int]) -> list[Member]:
    """Groups of given responses of random tokens; every fourth group has equal rewards."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda count: torch.randint(vocabulary, (count,), generator=generator).tolist()  # noqa: E731
    found = []
    for group in range(groups):
        prompt = draw(PROMPT)
        for i, length in enumerate(lengths):
            reward = 1.0 if group % 4 == 0 else float(i == 0 or i == group)
            found.append(
                Member(group, "teacher" if i else "expert", prompt, draw(length), "", False, Example("", ""), reward)
            )
    return found


@dataclass
class Run:
    """One head in the loop: its own copy of the model and optimiser."""

    loss: Loss
    policy: Policy
    config: TrainConfig
    optimizer: torch.optim.Optimizer
    seconds: list[float] = field(default_factory=list)
    last: dict = field(default_factory=dict)  # loss, grad_norm and the rest of the last step

    @classmethod
    def of(cls, task: Task, head: str) -> Run:
        policy, config = task.policy(), task.config()
        optimizer = torch.optim.AdamW(
            policy.model.parameters(), lr=config.optim.lr, weight_decay=config.optim.weight_decay
        )
        return cls(HEADS[head](), policy, config, optimizer)

    def step(self, given: list[Member]) -> None:
        """gft's training step, timed, with the responses and the head put in."""
        wait = torch.cuda.synchronize if self.policy.device.type == "cuda" else lambda: None
        with (
            patch("gft.groups._given", lambda *_: given),
            patch("gft.train.linear_policy_loss", self.loss),
            RewardPool("exact") as pool,
        ):
            wait()
            start = time.perf_counter()
            self.last = train_step(self.policy, self.optimizer, [], self.config, pool, len(self.seconds) + 1)
            wait()
            self.seconds.append(time.perf_counter() - start)


def off(run: Run, oracle: Run, gate: float) -> str | None:
    """What is wrong with the last step, next to that of the eager head; None if nothing is."""
    if not oracle.last:
        return "eager failed: there is nothing to hold this head to"
    for name in ("loss", "grad_norm"):
        found, expected = run.last[name], oracle.last[name]
        if not abs(found - expected) <= gate * abs(expected):
            return (
                f"step {len(run.seconds)}: {name} {found:.6g}, of eager {expected:.6g}; "
                f"they differ by more than {gate:.0e}: left out"
            )
    return None


def compare(task: Task, names: Sequence[str], steps: int) -> list[dict]:
    """Interleaved steps of the heads after a warm-up that is their gate; rows of the CSV, a note
    where a head was left out.
    """
    rows: dict[str, dict] = {name: {"provider": name} for name in dict.fromkeys(("eager", *names))}
    runs = {name: Run.of(task, name) for name in rows}
    given = members(runs["eager"].policy.weight.shape[0], task.groups, task.lengths())
    gate = GATE[runs["eager"].policy.compute]
    for number in range(steps + 1):
        for name, run in runs.items():
            if "note" not in rows[name]:
                attempt(rows[name], lambda run=run: run.step(given))
        for name, run in runs.items():
            if number in (0, steps) and "note" not in rows[name] and (wrong := off(run, runs["eager"], gate)):
                rows[name]["note"] = wrong
    common = describe_machine(task.device) | {
        "model": task.name(),
        "tokens": sum(len(m.response) for m in given),
        "micro_batch": task.micro_batch,
    }
    timed = {name: run for name, run in runs.items() if "note" not in rows[name]}
    for name, run in timed.items():
        rows[name] |= figures(run.seconds[1:], runs["eager"].seconds[1:])  # a timed head was held to eager: eager ran
        rows[name] |= {key: f"{run.last[key]:.6g}" for key in ("loss", "grad_norm")}
    names = list(timed)
    del runs, timed, run
    gc.collect()
    for name in names:
        peak = attempt(rows[name], lambda name=name: peak_mib(task, name))
        rows[name]["peak_mib"] = "" if peak is None else f"{peak:.0f}"
    return [common | row for row in rows.values()]


def figures(seconds: Sequence[float], eager_seconds: Sequence[float]) -> dict[str, str]:
    """Median speed and its spread; the ratio is the median over rounds, since a slow minute falls
    on both sides of a round.
    """
    speeds = sorted(1 / s for s in seconds)
    fifth = len(speeds) // 5
    ratio = statistics.median(theirs / ours for theirs, ours in zip(eager_seconds, seconds, strict=True))
    spread = {"steps_per_s": statistics.median(speeds), "p20": speeds[fifth], "p80": speeds[-1 - fifth]}
    return {key: f"{value:.4g}" for key, value in spread.items()} | {"ratio_to_eager": f"{ratio:.2f}"}


def peak_mib(task: Task, head: str) -> float:
    """Memory of a step above the model and the optimiser's state, in a fresh process (in this one
    for the tiny task).
    """
    if task.tiny:
        return peak_here(task, head)
    sizes = ("--groups", str(task.groups), "--micro-batch", str(task.micro_batch))
    command = [sys.executable, "-m", "benchmarks.loop", "--device", task.device, "--peak-of", head, *sizes]
    command += ["--model", str(task.model.resolve())] if task.model else []
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # glibc hands back what a warm-up freed
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().rpartition("\n")[2])
    return float(done.stdout.split()[-1])


def peak_here(task: Task, head: str) -> float:
    run = Run.of(task, head)
    vocabulary = run.policy.weight.shape[0]
    run.step(members(vocabulary, 4, [4] * len(LENGTHS)))  # a tiny warm-up, which makes the optimiser's state
    given = members(vocabulary, task.groups, task.lengths())
    cuda = task.device == "cuda"
    before = torch.cuda.memory_allocated() if cuda else rss()
    (torch.cuda.reset_peak_memory_stats if cuda else reset_peak)()
    run.step(given)
    return ((torch.cuda.max_memory_allocated() if cuda else peak_rss()) - before) / MIB


def available() -> list[str]:
    """Heads that can be imported here; says why another cannot."""
    found = []
    for name, load in HEADS.items():
        try:
            load()
            found.append(name)
        except Exception as error:  # a package's import runs its own code, which may fail in any way
            print(f"skipped {name}: {type(error).__name__}: {error}")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loop", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, help="local transformers folder (default: a small random Llama)")
    parser.add_argument("--steps", type=int, default=6, help="optimiser steps of a head, after one of warm-up")
    parser.add_argument("--groups", type=int, default=4, help=f"groups of {len(LENGTHS)} responses a step")
    parser.add_argument("--micro-batch", type=int, default=8, help="sequences a forward and backward pass")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--tiny", action="store_true", help="sizes that only show that everything runs")
    parser.add_argument("--heads", nargs="*", help=f"of {', '.join(HEADS)}, beside eager (default: all)")
    parser.add_argument("--out", type=Path, default=RESULTS / "loop.csv")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    task = Task(options.model, options.device, options.tiny, options.groups, options.micro_batch)
    if options.peak_of:
        print(peak_here(task, options.peak_of))
        return
    rows = compare(
        task, [name for name in available() if options.heads is None or name in options.heads], options.steps
    )
    append_rows(options.out, rows, FIELDS)
    print(
        f"\n{rows[0]['model']}, {rows[0]['tokens']} response tokens a step, "
        f"micro-batches of {task.micro_batch}, {options.steps} steps"
    )
    print("".join(f"{column:>16}" for column in COLUMNS))
    for row in rows:
        print("".join(f"{row.get(column, ''):>16}" for column in COLUMNS), row.get("note", ""))
    print(f"rows appended to {options.out}")


if __name__ == "__main__":
    main()
