"""Fifty saves that are killed at a random place leave the newest whole checkpoint to go on from."""

from __future__ import annotations

import os
import random
from signal import SIGKILL

import pytest
import torch

from gft.checkpoint import Checkpoints, newest_whole
from gft.demo.base_model import tokenizer
from gft.optim import make_optimizer
from gft.parts import OptimConfig
from gft.policy import load_policy, make_policy
from gft.state import RunState, random_state

from .harness import forked, resolve
from .tiny import tiny_model

# What a save does to the disk, and what an older folder's removal does.
OPERATIONS = (
    "os.fsync",
    "pathlib.Path.mkdir",
    "pathlib.Path.rename",
    "pathlib.Path.write_text",
    "gft.checkpoint._save_model",
    "gft.moments.save_file",
    "gft.checkpoint._measure",
    "shutil.rmtree",
    "os.unlink",
    "os.rmdir",
)


def kill_at(number):
    """End this process at the nth operation, before it or after it."""
    done = []

    def wrap(original):
        def counted(*args, **kwargs):
            done.append(1)
            if len(done) == number:
                os.kill(os.getpid(), SIGKILL)
            result = original(*args, **kwargs)
            if len(done) == number + 1:
                os.kill(os.getpid(), SIGKILL)
            return result

        return counted

    for name in OPERATIONS:
        owner, attribute = resolve(name)
        setattr(owner, attribute, wrap(getattr(owner, attribute)))


def checkpoints(folder, policy):
    optimizer = make_optimizer(policy.model, OptimConfig())
    return Checkpoints(folder, "run", policy, optimizer, [], keep=2)


def save_many(folder, acknowledge):
    """Save steps 1, 1, 2, 2, ...: each twice, as a run does that is stopped where it was saved.

    Every weight and moment of step n is n.
    """
    policy = make_policy(tiny_model(), tokenizer())
    kept = checkpoints(folder, policy)
    for p in policy.model.parameters():
        p.grad = torch.zeros_like(p)
    kept.optimizer.step()
    for n in range(2, 40):
        step = n // 2
        with torch.no_grad():
            for p in policy.model.parameters():
                p.fill_(step)
                kept.optimizer.state[p]["exp_avg"].fill_(step)
        kept.save(RunState(step=step, random=random_state(policy.device)))
        os.write(acknowledge, bytes([step]))


@pytest.mark.parametrize("seed", [s if s < 12 else pytest.param(s, marks=pytest.mark.slow) for s in range(50)])
def test_killed_save_leaves_a_state_that_resumes(seed, tmp_path):
    # The first save has fifty operations, and later ones, which replace and prune, more.
    number = random.Random(seed).randint(1, 400)
    reader, writer = os.pipe()

    def work():
        kill_at(number)
        save_many(tmp_path, writer)

    ended = forked(work, tmp_path / "log")
    assert ended.code == -SIGKILL, ended.output
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        done = [0, *pipe.read()][-1]
    path = newest_whole(tmp_path, "run", pytest.fail)  # none is damaged
    if path is None:
        assert done == 0
        return
    policy = load_policy(path / "model", device="cpu")
    kept = checkpoints(tmp_path, policy)
    state = kept.restore(path, pytest.fail)
    assert done <= state.step <= done + 1
    for p in policy.model.parameters():
        assert (p == state.step).all()
        assert (kept.optimizer.state[p]["exp_avg"] == state.step).all()
    kept.save(state)
    assert path.name == f"checkpoint-{state.step}"
    assert not list(tmp_path.glob(".*"))
