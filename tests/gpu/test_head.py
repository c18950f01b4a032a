"""The head on a real device: run with `-m gpu`; every test skips where there is none."""

import pytest
import torch

from gft_kernels import Head, gft, linear_logprob, linear_policy_loss

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA or ROCm device")]


def problem(dtype, n, d, v):
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(n, d, generator=g).to("cuda", dtype).requires_grad_()
    weight = (torch.randn(v, d, generator=g) * d**-0.5).to("cuda", dtype).requires_grad_()
    targets = torch.randint(0, v, (n,), generator=g)
    targets[::5] = -100
    return hidden, weight, targets.cuda(), torch.randn(n, generator=g).cuda()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1000, 96, 50257), (17, 128, 32001)])  # ragged rows, vocabularies off every block multiple
def test_chunked_on_the_device_agrees_with_fp64_on_the_host(dtype, shape):
    hidden, weight, targets, advantages = problem(dtype, *shape)
    found = linear_policy_loss(hidden, weight, targets, advantages, objective=gft(0.0), backend="chunked")
    found.loss.backward()
    host = [t.detach().cpu().double().requires_grad_() for t in (hidden, weight)]
    expected = linear_policy_loss(*host, targets.cpu(), advantages.cpu().double(), objective=gft(0.0), backend="eager")
    expected.loss.backward()
    tolerance = {torch.float64: 1e-10, torch.bfloat16: 4e-3, torch.float16: 6e-4}[dtype]
    for a, b in ((hidden.grad, host[0].grad), (weight.grad, host[1].grad)):
        assert (a.cpu().double() - b).norm() <= tolerance * b.norm()
    assert abs(found.loss.item() - expected.loss.item()) <= 5e-4 * abs(expected.loss.item())


def test_linear_logprob_repeats_to_the_bit():
    hidden, weight, targets, _ = problem(torch.bfloat16, 500, 96, 50257)
    first = linear_logprob(hidden, weight, targets, head=Head(chunk_rows=128))
    assert all(torch.equal(first.logprobs, linear_logprob(hidden, weight, targets, head=Head(chunk_rows=128)).logprobs) for _ in range(10))
