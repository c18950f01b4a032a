"""Problems whose softmaxes are peaked, and their gradients over the columns that count."""

from __future__ import annotations

import torch

from gft_kernels import Sparse, gft, linear_policy_loss

from .problems import settings_of

BACKENDS = ("chunked", "triton")


def peaked(n: int, d: int, v: int, seed: int = 0, sharpness: float = 6.0, dtype: torch.dtype = torch.float64):
    """(hidden, weight, targets, advantages) with few likely columns.

    Some rows hardly count, and some advantages are negative.
    """
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(v, d, generator=g) * d**-0.5
    hidden = sharpness * torch.randn(n, d, generator=g)
    targets = (hidden @ weight.T).softmax(1).multinomial(1, generator=g).squeeze(1)
    advantages = torch.randn(n, generator=g)
    smaller = torch.rand(n, generator=g) * (torch.rand(n, generator=g) < 0.3)  # for a third of the rows
    advantages = (advantages * 10 ** (-6 * smaller)).to(torch.float64 if dtype == torch.float64 else torch.float32)
    return hidden.to(dtype), weight.to(dtype), targets, advantages


def gradients(problem, sparsity: Sparse | None = None, backend: str = "chunked", objective=None, **options):
    """(dhidden, dweight, stats) of a loss that sums over rows."""
    hidden, weight, targets, advantages = problem
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    out = linear_policy_loss(
        hidden,
        weight,
        targets,
        advantages,
        objective=objective or gft(0.7),
        token_weights=torch.ones_like(advantages),
        **settings_of(backend, sparsity=sparsity, **options),
    )
    out.loss.backward()
    return hidden.grad, weight.grad, out.stats


def logit_gradients(problem, sparsity: Sparse | None = None, **options):
    """dz [N, V]: with the identity for a head, dhidden is the logits' gradient."""
    hidden, weight, targets, advantages = problem
    logits = hidden @ weight.T
    dz, _, stats = gradients(
        (logits, torch.eye(len(weight), dtype=logits.dtype), targets, advantages), sparsity, **options
    )
    return dz, stats
