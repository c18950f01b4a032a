"""The interpreter's bf16, which the package repairs.

Every other test of bf16 kernels on a CPU rests on it.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import triton
import triton.language as tl

from gft_kernels.engines.triton import interpreter

pytestmark = pytest.mark.skipif(not interpreter.ACTIVE, reason="kernels run on the device")


@triton.jit
def dot_kernel(a_ptr, b_ptr, out_ptr, BLOCK: tl.constexpr):
    """out [BLOCK, BLOCK] += a @ b."""
    at = tl.arange(0, BLOCK)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    acc = tl.load(out_ptr + at)
    tl.store(
        out_ptr + at,
        tl.dot(tl.load(a_ptr + at), tl.load(b_ptr + at), acc, input_precision="ieee", out_dtype=tl.float32),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_dot_multiplies_values_and_adds_in_fp32(dtype):
    a, b = torch.randn(16, 16).to(dtype), torch.randn(16, 16).to(dtype)
    acc = torch.randn(16, 16)
    want = acc.double() + a.double() @ b.double()
    dot_kernel[(1,)](a, b, acc, BLOCK=16)
    torch.testing.assert_close(acc.double(), want, rtol=0, atol=1e-5)


@triton.jit
def cast_kernel(x_ptr, out_ptr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(out_ptr + at, tl.load(x_ptr + at).to(out_ptr.dtype.element_ty))


# Between 1 and the next bf16, 1 + 2^-7: just under the middle, the middle (to even, down), just
# over it. Then the middle above the odd neighbour (to even, up), the same below 0, the largest
# number that does not overflow, the first that does, and the rest.
ROUNDINGS = {
    1 + 2**-8 - 2**-20: 1.0,
    1 + 2**-8: 1.0,
    1 + 2**-8 + 2**-20: 1 + 2**-7,
    1 + 2**-7 + 2**-8: 1 + 2**-6,
    -1 - 2**-8: -1.0,
    -1 - 2**-8 - 2**-20: -1 - 2**-7,
    (2 - 2**-7) * 2.0**127: (2 - 2**-7) * 2.0**127,
    (2 - 2**-9) * 2.0**127: torch.inf,
    -torch.inf: -torch.inf,
    2.0**-133: 2.0**-133,
    0.0: 0.0,
}


def test_cast_rounds_bf16_to_nearest_even():
    x = torch.zeros(16)
    x[: len(ROUNDINGS)] = torch.tensor(list(ROUNDINGS))
    x[-1] = torch.nan
    out = torch.zeros(16, dtype=torch.bfloat16)
    cast_kernel[(1,)](x, out, BLOCK=16)
    assert out[: len(ROUNDINGS)].tolist() == list(ROUNDINGS.values())
    assert out[-1].isnan()


def test_cast_agrees_with_torch_on_any_number():
    x = torch.randn(4096) * torch.exp2(torch.randint(-130, 120, (4096,)).float())
    out = torch.zeros(4096, dtype=torch.bfloat16)
    cast_kernel[(1,)](x, out, BLOCK=4096)
    assert torch.equal(out, x.bfloat16())


def test_cast_from_bf16_is_exact():
    x, out = torch.randn(64).bfloat16(), torch.zeros(64)
    cast_kernel[(1,)](x, out, BLOCK=64)
    assert torch.equal(out, x.float())


PROGRAM = """
from triton.runtime.interpreter import InterpreterBuilder
shipped = InterpreterBuilder.create_dot
import torch
from gft_kernels import linear_logprob
from gft_kernels.engines.triton import engine
print(InterpreterBuilder.create_dot is shipped)
hidden, weight = torch.zeros(2, 4, dtype=torch.bfloat16), torch.zeros(8, 4, dtype=torch.bfloat16)
linear_logprob(hidden, weight, torch.tensor([1, 2]), backend="triton")
print(InterpreterBuilder.create_dot is shipped)
"""


def test_repair_comes_with_the_first_use_and_not_with_the_import():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["True", "False"], done.stderr
