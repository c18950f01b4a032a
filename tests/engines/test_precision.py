"""fp32 sums over a real vocabulary: entropy and its gradient keep the digits that eager keeps."""

import pytest
import torch

from gft_kernels import Head, linear_logprob


def entropy_and_gradients(backend, dtype, weight_scale, softcap):
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(32, 64, generator=g).to(dtype).requires_grad_()
    weight = (torch.randn(131072, 64, generator=g) * weight_scale / 8).to(dtype).requires_grad_()
    out = linear_logprob(
        hidden, weight, torch.randint(0, 131072, (32,), generator=g), head=Head(softcap=softcap), backend=backend
    )
    out.entropy.backward(torch.randn(32, generator=g).to(dtype))
    return out.entropy.detach().double(), hidden.grad.double(), weight.grad.double()


@pytest.mark.parametrize(("weight_scale", "softcap"), [(1.0, None), (3.0, None), (3.0, 20.0)])
def test_linear_logprob_entropy_is_as_near_to_fp64_as_eager_is(weight_scale, softcap):
    """One dot product over 131,072 columns would lose two digits to eager's pairwise sums."""
    want = entropy_and_gradients("eager", torch.float64, weight_scale, softcap)
    errors = {
        backend: [
            (x - y).norm() / y.norm()
            for x, y in zip(entropy_and_gradients(backend, torch.float32, weight_scale, softcap), want, strict=True)
        ]
        for backend in ("eager", "chunked")
    }
    for found, eager in zip(errors["chunked"], errors["eager"], strict=True):
        assert found <= eager + 1e-6
