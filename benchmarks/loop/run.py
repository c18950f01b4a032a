"""Steps of one head, and the memory of one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from unittest.mock import patch

import torch

from gft.groups import Member
from gft.model.policy import Policy
from gft.optim import make_optimizer
from gft.rewards.pool import RewardPool
from gft.runs.state import RunState
from gft.settings.config import TrainConfig
from gft.train import roll_out, train_step

from ..record import ROOT
from ..timing.memory import MIB, peak_rss, reset_peak, rss
from .heads import HEADS, Loss
from .task import LENGTHS, Task, members


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
        return cls(HEADS[head](), policy, config, make_optimizer(policy.model, config.optim))

    def step(self, given: list[Member]) -> None:
        """gft's training step, timed, with the responses and the head put in."""
        wait = torch.cuda.synchronize if self.policy.device.type == "cuda" else lambda: None
        with (
            patch("gft.groups._given", lambda *_: given),
            patch("gft_kernels.integrations.fuse.linear_policy_loss", self.loss),
            RewardPool("exact") as pool,
        ):
            wait()
            start = time.perf_counter()
            state = RunState(step=len(self.seconds))
            state.in_use = roll_out(self.policy, [], self.config, pool, None)
            self.last = train_step(self.policy, self.optimizer, self.config, state)
            wait()
            self.seconds.append(time.perf_counter() - start)


def peak_mib(task: Task, head: str) -> float:
    """MiB of a step above the model and the optimiser's state.

    The step runs in a fresh process; that of the tiny task in this one.
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
    vocabulary = run.policy.model.config.vocab_size
    run.step(members(vocabulary, 4, [4] * len(LENGTHS)))  # a tiny warm-up, which makes the optimiser's state
    given = members(vocabulary, task.groups, task.lengths())
    cuda = task.device == "cuda"
    before = torch.cuda.memory_allocated() if cuda else rss()
    (torch.cuda.reset_peak_memory_stats if cuda else reset_peak)()
    run.step(given)
    return ((torch.cuda.max_memory_allocated() if cuda else peak_rss()) - before) / MIB
