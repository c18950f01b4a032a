"""Sizes that only a device holds: offsets beyond 2^31, and the memory ceiling."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gft_kernels import Backend, linear_logprob, linear_policy_loss, reinforce

from .device import DEVICE, DRY, LIMIT, LOGPROB_LIMIT, MARKS, needs_memory, relative, sized

pytestmark = MARKS

BF16 = torch.bfloat16


def random_head(rows: int, size: int, vocabulary: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """hidden, weight (made in place, in bf16), targets of which the last are the last columns,
    advantages.
    """
    g = torch.Generator(DEVICE).manual_seed(0)
    hidden = torch.randn(rows, size, generator=g, device=DEVICE, dtype=BF16)
    weight = torch.randn(vocabulary, size, generator=g, device=DEVICE, dtype=BF16).mul_(size**-0.5)
    targets = torch.randint(vocabulary, (rows,), generator=g, device=DEVICE)
    targets[-4:] = vocabulary - 1 - torch.arange(4, device=DEVICE)
    return hidden.requires_grad_(), weight.requires_grad_(), targets, torch.randn(rows, generator=g, device=DEVICE)


def exact(hidden: Tensor, weight: Tensor, targets: Tensor, advantages: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probs [n] and dz [n, V] of reinforce with weights 1, in fp64, the weight taken in slices."""
    with torch.no_grad():
        logits = torch.cat([hidden.double() @ part.double().T for part in weight.split(16384)], 1)
        log_p = logits.log_softmax(-1)
        dz = log_p.exp() * advantages[:, None].double()
        at = torch.arange(len(targets), device=DEVICE)
        dz[at, targets] -= advantages.double()
        return log_p[at, targets], dz


def run(inputs: tuple[Tensor, ...], **options) -> Tensor:
    hidden, weight, targets, advantages = inputs
    hidden.grad = weight.grad = None
    ones = torch.ones(len(targets), device=DEVICE)
    backend = Backend("triton", **options)
    result = linear_policy_loss(
        hidden, weight, targets, advantages, objective=reinforce(), token_weights=ones, backend=backend
    )
    result.loss.backward()
    return result.logprobs


def test_a_chunk_beyond_int32_offsets():
    needs_memory(24)
    rows, vocabulary = sized((8704, 262144), (40, 96))  # chunk_rows * V > 2^31
    inputs = random_head(rows, sized(64, 16), vocabulary)
    hidden, weight, targets, advantages = inputs
    logprobs = run(inputs, chunk_rows=rows)
    last = slice(-16, None)
    want, dz = exact(hidden[last], weight, targets[last], advantages[last])
    assert (logprobs[last] - want).abs().max() <= LOGPROB_LIMIT
    assert relative(hidden.grad[last], dz @ weight.detach().double()) <= LIMIT[BF16]
    whole = weight.grad
    run(inputs, chunk_rows=sized(1024, 16))
    assert relative(whole, weight.grad) <= LIMIT[BF16]


def test_a_weight_beyond_int32_offsets():
    needs_memory(40)
    vocabulary, size = sized((262144, 8256), (96, 16))  # V * D > 2^31
    inputs = random_head(sized(64, 16), size, vocabulary)
    hidden, weight = inputs[:2]
    logprobs = run(inputs)
    want, dz = exact(*inputs)
    assert (logprobs - want).abs().max() <= LOGPROB_LIMIT
    last = slice(-sized(1000, 30), None)
    assert relative(weight.grad[last], dz[:, last].T @ hidden.detach().double()) <= LIMIT[BF16]
    product = sum(dz[:, i : i + 16384] @ weight[i : i + 16384].detach().double() for i in range(0, vocabulary, 16384))
    assert relative(hidden.grad, product) <= LIMIT[BF16]
    assert (linear_logprob(*inputs[:3], backend="triton").logprobs - want).abs().max() <= LOGPROB_LIMIT


def extra_gib(inputs: tuple[Tensor, ...]) -> float:
    if DRY:
        run(inputs)
        return 0.0
    inputs[0].grad = inputs[1].grad = None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run(inputs)
    return (torch.cuda.max_memory_allocated() - before) / 2**30


def test_peak_memory_is_the_weights_gradient_and_a_chunk():
    needs_memory(8)
    rows, size, vocabulary = sized((8192, 4096, 131072), (24, 16, 96))
    inputs = random_head(rows, size, vocabulary)
    run(inputs)  # libraries' workspaces exist from here on
    peak, dweight = extra_gib(inputs), 4 * vocabulary * size / 2**30
    assert peak <= dweight + 1.1, f"{peak:.2f} GiB, of which {dweight:.2f} for dweight"
    inputs[1].requires_grad_(False)
    peak = extra_gib(inputs)
    assert peak <= 1.1, f"{peak:.2f} GiB with a frozen weight: its gradient must not be allocated"


@pytest.mark.skipif(DRY, reason="the interpreter has no memory of its own")
def test_logprob_forward_holds_no_logits():
    needs_memory(8)
    inputs = random_head(8192, 1024, 131072)
    with torch.no_grad():
        linear_logprob(*inputs[:3], backend="triton")
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        linear_logprob(*inputs[:3], backend="triton")
    assert torch.cuda.max_memory_allocated() - before <= 0.25 * 2**30
