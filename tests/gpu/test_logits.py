"""The losses on logits that exist already: parity, in place, rows of any length."""

from __future__ import annotations

import pytest
import torch

from gft_kernels import Head, gft, grpo, kl, logits_policy_loss

from .device import DEVICE, LIMIT, LOGPROB_LIMIT, MARKS, make_problem, needs_memory, relative, sized

pytestmark = MARKS


def logits_problem(dtype: torch.dtype, vocabulary: int):
    problem = make_problem(sized(300, 24), sized(64, 16), vocabulary, torch.float32)
    return problem, (problem.hidden @ problem.weight.T).to(dtype)


def run(problem, logits, backend, **options):
    leaf = logits.clone().requires_grad_()
    result = logits_policy_loss(
        leaf * 1.0, problem.targets, problem.advantages, token_weights=problem.weights, backend=backend, **options
    )
    result.loss.backward()
    return result, leaf.grad


@pytest.mark.parametrize(
    ("dtype", "vocabulary"),
    [(torch.bfloat16, 50257), (torch.bfloat16, 128256), (torch.float16, 32001), (torch.float32, 32001)],
)
def test_logits_loss_agrees_with_fp64(dtype, vocabulary):
    problem, logits = logits_problem(dtype, sized(vocabulary, 97))
    options = {
        "objective": grpo(0.2, 0.2) + kl(0.05),
        "old_logprobs": problem.old,
        "ref_logprobs": problem.ref,
        "head": Head(temperature=0.9),
    }
    got, found = run(problem, logits, "triton", **options)
    double = problem.double()
    options |= {"old_logprobs": double.old, "ref_logprobs": double.ref}
    want, expected = run(double, logits.double(), "eager", **options)
    seen = want.logprobs.isfinite()
    assert (got.logprobs - want.logprobs)[seen].abs().max() <= LOGPROB_LIMIT
    assert (got.entropy - want.entropy)[seen].abs().max() <= LOGPROB_LIMIT
    rounding = relative(expected.to(dtype), expected) if dtype == torch.float16 else 0.0
    assert relative(found, expected) <= LIMIT[dtype] + rounding


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_loss_in_place_gives_the_same_bits(dtype):
    problem, logits = logits_problem(dtype, sized(32001, 97))
    apart, found = run(problem, logits, "triton", objective=gft(0.7))
    inside, overwritten = run(problem, logits, "triton", objective=gft(0.7), inplace=True)
    assert torch.equal(apart.loss, inside.loss)
    assert torch.equal(found, overwritten)
    assert not found[problem.targets == -100].any()


def test_logits_loss_beyond_int32_offsets():
    needs_memory(30)
    rows, vocabulary = sized((8320, 262143), (24, 97))  # N * V > 2^31
    g = torch.Generator(DEVICE).manual_seed(0)
    logits = torch.randn(rows, vocabulary, generator=g, device=DEVICE, dtype=torch.bfloat16)
    targets = torch.randint(vocabulary, (rows,), generator=g, device=DEVICE)
    advantages = torch.randn(rows, generator=g, device=DEVICE)
    ones = torch.ones(rows, device=DEVICE)
    leaf = logits.requires_grad_()
    result = logits_policy_loss(leaf, targets, advantages, objective=gft(0.0), token_weights=ones, backend="triton")
    result.loss.backward()
    last = slice(-8, None)
    want = logits[last].detach().double().log_softmax(-1)
    assert (result.logprobs[last] - want.gather(1, targets[last, None]).squeeze(1)).abs().max() <= LOGPROB_LIMIT
    onehot = torch.nn.functional.one_hot(targets[last], vocabulary)
    assert relative(leaf.grad[last], advantages[last, None] * (want.exp() - onehot)) <= LIMIT[torch.bfloat16]
