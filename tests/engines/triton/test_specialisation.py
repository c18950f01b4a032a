"""What changes from step to step compiles no kernel anew: that would cost seconds inside a run.

The keys are Triton's own, of an H100, taken from launches in the interpreter that then run
nothing: a kernel is compiled once for each.
"""

from __future__ import annotations

import random

import pytest
import torch
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import make_backend
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction, create_function_from_signature

from gft_kernels import (
    Backend,
    GroupRewards,
    Head,
    Sparse,
    cispo,
    gft,
    grpo,
    kl,
    linear_logprob,
    linear_policy_loss,
    logits_policy_loss,
)
from gft_kernels.engines.triton import interpreter
from gft_kernels.engines.triton.advantages import group_advantages

pytestmark = pytest.mark.skipif(not interpreter.ACTIVE, reason="launches are recorded in the interpreter")

D, V = 16, 40
OPTIONS = ("do_not_specialize", "do_not_specialize_on_alignment")


@pytest.fixture
def compiled(monkeypatch) -> set[tuple[str, str]]:
    """(kernel, key) of every kernel that the launches so far would have compiled."""
    keys: set[tuple[str, str]] = set()
    backend, binders = make_backend(GPUTarget("cuda", 90, 32)), {}

    def recorded(self, *args, grid, warmup, **kwargs):
        if self.fn not in binders:
            jit = JITFunction(self.fn, **{name: self.kwargs[name] for name in OPTIONS})
            binders[self.fn] = create_function_from_signature(jit.signature, jit.params, backend)
        _, key, _ = binders[self.fn](*args, **kwargs)
        keys.add((self.fn.__name__, str(key)))

    monkeypatch.setattr(InterpretedFunction, "run", recorded)
    return keys


def train_step(rows: int, responses: int, x: float, dtype: torch.dtype) -> None:
    """Every op and every kernel, with `rows` tokens and schedules at x."""
    hidden = torch.randn(rows, D, dtype=dtype, requires_grad=True)
    weight = torch.randn(V, D, dtype=dtype, requires_grad=True)
    targets, sequence_ids = torch.randint(V, (rows,)), torch.randint(responses, (rows,))
    group_advantages(GroupRewards(torch.rand(responses), torch.zeros(responses, dtype=torch.int64), sequence_ids))
    advantages, old = torch.randn(rows), torch.randn(rows) - 3
    head = Head(scale=1 + x, softcap=5 + x, temperature=x)
    given = {"old_logprobs": old, "ref_logprobs": old}
    for objective in (gft(x), grpo(x, 2 * x, 1 + x) + kl(x), cispo(x, x), gft(x * torch.rand(rows)) + kl(x)):
        for options in ({"head": head}, {"backend": Backend("triton", sparsity=Sparse())}):
            options = {"backend": "triton", **given, **options}
            linear_policy_loss(hidden, weight, targets, advantages, objective=objective, **options).loss.backward()
        logits = (hidden @ weight.T).detach().requires_grad_()
        options = {"head": Head(temperature=x), "backend": "triton", **given}
        logits_policy_loss(logits, targets, advantages, objective=objective, **options).loss.backward()
    found = linear_logprob(hidden, weight, targets, head=head, backend="triton")
    (x * found.logprobs.sum() + found.entropy.sum()).backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_fifty_steps_compile_what_the_first_two_did(compiled, dtype):
    rng = random.Random(0)
    sizes = [(24, 6), (21, 5), (16, 16), (1, 1), (2, 1), (32, 2)] + [
        (rng.randrange(1, 60), rng.randrange(1, 20)) for _ in range(44)
    ]
    after_two = None
    for step, (rows, responses) in enumerate(sizes, 1):
        train_step(rows, responses, rng.uniform(0.1, 0.9), dtype)
        if step == 2:
            after_two = set(compiled)
    assert len({name for name, _ in compiled}) >= 9  # every kernel was there
    assert compiled == after_two
