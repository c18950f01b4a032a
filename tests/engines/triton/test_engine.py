"""The engine around the kernels: how work is cut up, what it allocates, its configurations."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from torch.utils._python_dispatch import _disable_current_modes

from gft_kernels import (
    Backend,
    GroupRewards,
    Head,
    cispo,
    dft,
    gft,
    grpo,
    kl,
    linear_logprob,
    linear_policy_loss,
    reinforce,
    sft,
)
from gft_kernels.engines.triton import engine, formulas, interpreter
from gft_kernels.engines.triton.arguments import OUTSIDE, objective_numbers
from gft_kernels.engines.triton.configs import Config, pad, use_config
from gft_kernels.engines.triton.engine import CHUNK_BYTES, chunk_rows

from ...helpers.formulas import chord, luffy
from ...helpers.problems import assert_equal_results, fused, make_problem, naive
from ...helpers.recorder import Recorder

PROBLEM = make_problem(50, 11, 37)
# The interpreter's own is 16 x 32 x 32. These have every size on either side of it, blocks over
# K, V and D, one row block a group, and more than there are.
CONFIGS = (
    Config(16, 16, 16, 1, 1, group=1),
    Config(32, 16, 64, 1, 1, group=2),
    Config(16, 128, 16, 1, 1, group=3),
    Config(64, 64, 16, 1, 1, group=16),
)


BENT = {"softcap": 3.0, "temperature": 0.8}
# 70 rows in one chunk are two to five row blocks, so that groups have more than one.
CUT = make_problem(70, 35, 75, masked=0)


@pytest.mark.parametrize(("config", "transforms"), [*zip(CONFIGS, [{}, BENT, {}, BENT], strict=True)], ids=str)
def test_linear_policy_loss_blocks_change_nothing(config, transforms):
    want = fused(CUT, chunk_rows=70, transforms=transforms, backend="chunked")
    with use_config(config):
        got = fused(CUT, chunk_rows=70, transforms=transforms, backend="triton")
    assert_equal_results(got, want)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_linear_logprob_blocks_change_nothing(config):
    upstream = torch.randn(2, 70).double()

    def gradients(backend: str) -> tuple[torch.Tensor, ...]:
        hidden, weight, bias = (x.clone().requires_grad_() for x in CUT[:3])
        out = linear_logprob(hidden, weight, CUT.targets, head=Head(bias=bias), backend=backend)
        torch.autograd.backward(tuple(out), tuple(upstream))
        return out.logprobs.detach(), out.entropy.detach(), hidden.grad, weight.grad, bias.grad

    with use_config(config):
        torch.testing.assert_close(gradients("triton"), gradients("chunked"), rtol=1e-10, atol=1e-12)


def test_linear_policy_loss_without_chunk_rows_agrees_with_naive():
    got = fused(PROBLEM, objective=sft(), chunk_rows=None, backend="triton")
    assert_equal_results(got, naive(PROBLEM, lambda lp, a, old, ref: -lp), rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("vocabulary", [151936, 262145])
def test_chunk_rows_fill_the_buffer_in_steps_of_128(vocabulary, dtype):
    rows, row_bytes = chunk_rows(vocabulary, dtype, Backend()), pad(vocabulary) * dtype.itemsize
    assert rows % 128 == 0
    assert rows * row_bytes <= CHUNK_BYTES < (rows + 128) * row_bytes


def test_chunk_rows_have_bounds_and_may_be_given():
    assert chunk_rows(100, torch.bfloat16, Backend()) == 8192
    assert chunk_rows(1 << 27, torch.bfloat16, Backend()) == 128
    assert chunk_rows(100, torch.bfloat16, Backend(chunk_rows=7)) == 7


@pytest.mark.parametrize("columns", [1, 63, 64, 65, 50257])
def test_pad_starts_rows_on_128_bytes(columns):
    assert pad(columns) % 64 == 0
    assert columns <= pad(columns) < columns + 64


WIDE = make_problem(64, 8, 300, dtype=torch.float32)
BUFFER = (16, pad(300))


@pytest.fixture
def launches_unseen(monkeypatch):
    """The interpreter copies its arguments; what a recorder should see is the engine."""
    if interpreter.ACTIVE:
        from triton.runtime.interpreter import GridExecutor

        launch = GridExecutor.__call__

        def unseen(self, *args, **kwargs):
            with _disable_current_modes():
                return launch(self, *args, **kwargs)

        monkeypatch.setattr(GridExecutor, "__call__", unseen)


def record(hidden: bool = True, weight: bool = True, grad: bool = True) -> Recorder:
    leaves = WIDE.hidden.clone().requires_grad_(hidden), WIDE.weight.clone().requires_grad_(weight)
    with Recorder() as recorder, torch.set_grad_enabled(grad):
        out = linear_policy_loss(*leaves, WIDE.targets, WIDE.advantages, backend=Backend("triton", chunk_rows=16))
        if grad:
            out.loss.backward()
    return recorder


@pytest.mark.usefixtures("launches_unseen")
def test_linear_policy_loss_holds_one_buffer_of_exponentials():
    recorder = record()
    assert recorder.shapes.count(BUFFER) == 1
    assert recorder.largest() == 16 * pad(300)


@pytest.mark.usefixtures("launches_unseen")
def test_linear_policy_loss_without_grad_stores_no_exponentials():
    recorder = record(grad=False)
    assert recorder.largest() < 16 * 300
    assert not recorder.products


@pytest.mark.usefixtures("launches_unseen")
def test_linear_policy_loss_frozen_weight_costs_nothing():
    trained, frozen = record(), record(weight=False)
    assert trained.shapes.count((300, 8)) == 1
    assert (300, 8) in trained.products
    assert (300, 8) not in frozen.shapes + frozen.products
    assert (16, 8) in frozen.products


@pytest.mark.usefixtures("launches_unseen")
def test_linear_policy_loss_frozen_hidden_costs_no_product():
    frozen = record(hidden=False)
    assert (16, 8) not in frozen.products
    assert (300, 8) in frozen.products


@pytest.mark.usefixtures("launches_unseen")
def test_linear_logprob_frozen_weight_costs_nothing():
    hidden = WIDE.hidden.clone().requires_grad_()
    with Recorder() as recorder:
        linear_logprob(
            hidden, WIDE.weight, WIDE.targets, backend=Backend("triton", chunk_rows=16)
        ).logprobs.sum().backward()
    assert (300, 8) not in recorder.shapes + recorder.products
    assert recorder.shapes.count(BUFFER) == 1


def test_linear_policy_loss_second_backward_has_equal_bits():
    hidden, weight = (x.clone().requires_grad_() for x in PROBLEM[:2])
    loss = linear_policy_loss(
        hidden, weight, PROBLEM.targets, PROBLEM.advantages, backend=Backend("triton", chunk_rows=16)
    ).loss
    first = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    second = torch.autograd.grad(loss, (hidden, weight))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


def test_linear_policy_loss_repeats_to_the_bit():
    problem = make_problem(50, 33, 100, dtype=torch.bfloat16)
    first, second = (fused(problem, backend="triton") for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


@pytest.mark.parametrize(
    "objective", [sft(), dft(), gft(0.7), reinforce(), grpo(), grpo(dual_clip=3.0), cispo()], ids=repr
)
def test_objective_numbers_take_a_penalty_from_either_side(objective):
    alone = objective_numbers(objective)
    assert alone["KIND"] != formulas.OUTSIDE.value
    assert objective_numbers(objective + kl(0.05)) == objective_numbers(kl(0.05) + objective) == alone | {"beta": 0.05}


class Halved(type(gft())):
    """A user's subclass: no kernel has its formula."""

    def __call__(self, logprobs, **given):
        return super().__call__(logprobs, **given) / 2


OWN = {
    "function": luffy,
    "function + kl": chord + kl(0.05),
    "two objectives": gft(0.7) + grpo(),
    "kl twice": kl(0.05) + kl(0.1),
    "three": (gft(0.7) + kl(0.05)) + kl(0.1),
    "subclass": Halved(0.7),
}


@pytest.mark.parametrize("objective", OWN.values(), ids=OWN)
def test_linear_policy_loss_takes_objectives_no_kernel_knows(objective):
    assert objective_numbers(objective) is OUTSIDE
    given = {"objective": objective, "old_logprobs": PROBLEM.old_logprobs, "ref_logprobs": PROBLEM.ref_logprobs}
    assert_equal_results(fused(PROBLEM, backend="triton", **given), fused(PROBLEM, backend="eager", **given), rtol=1e-9)


def test_linear_logprob_reads_a_weight_beyond_two_to_the_31():
    # Rows 2^26 elements apart: the last lies 2^31.1 from the first. Untouched pages cost nothing.
    # An offset that wraps to int32 stays inside the mapping, 2^31 elements lower, and reads zeros.
    rows, stride, first = 37, 1 << 26, 1 << 31
    no_reserve = 0x4000  # MAP_NORESERVE, which mmap does not name
    try:
        memory = mmap.mmap(-1, 2 * (first + rows * stride), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve)
    except OSError as error:
        pytest.skip(f"no address space of 9 GB: {error}")
    flat = torch.frombuffer(memory, dtype=torch.float16)
    far = flat.as_strided((rows, 11), (stride, 1), first)
    problem = make_problem(20, 11, rows, dtype=torch.float16)
    far.copy_(problem.weight)
    got, want = (linear_logprob(problem.hidden, x, problem.targets, backend="triton") for x in (far, problem.weight))
    assert torch.equal(got.logprobs, want.logprobs)
    assert torch.equal(got.entropy, want.entropy)


PROGRAM = """
import torch
from gft_kernels import GroupRewards, linear_logprob, linear_policy_loss, logits_policy_loss
hidden, weight, targets = torch.zeros(2, 4), torch.zeros(8, 4), torch.tensor([1, 2])
rewards = GroupRewards(torch.tensor([0.0, 1.0]), torch.zeros(2, dtype=torch.long), torch.arange(2))
for call in (
    lambda: linear_logprob(hidden, weight, targets, backend="triton"),
    lambda: linear_policy_loss(hidden, weight, targets, torch.ones(2), backend="triton"),
    lambda: linear_policy_loss(hidden, weight, targets, rewards, backend="triton"),
    lambda: logits_policy_loss(hidden @ weight.T, targets, rewards, backend="triton"),
):
    try:
        call()
    except ValueError as error:
        print(error)
"""


def test_ops_refuse_a_cpu_without_the_interpreter():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=120)
    message = "backend = 'triton' needs CUDA or ROCm tensors, got cpu: use backend='chunked' there"
    assert done.stdout.count(message) == 4, done.stdout + done.stderr


def test_group_advantages_launch_on_the_device_of_the_rewards(monkeypatch):
    entered = []
    monkeypatch.setattr(engine, "_on", lambda device: entered.append(device) or nullcontext())
    rewards = torch.tensor([0.0, 1.0])
    engine.group_advantages(GroupRewards(rewards, torch.zeros(2, dtype=torch.long), torch.arange(2)))
    assert entered == [rewards.device]
