"""Random problems for the head's ops, and their answers on full [N, V] logits in fp64, written
without the package.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gft_kernels import Backend, Head, linear_policy_loss

Formula = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # (lp, advantages, old, ref) -> loss [N]

# RMS of a gradient's error over RMS of the gradient, by the gradient's dtype.
RMS_LIMIT = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 4e-4, torch.bfloat16: 3e-3}


class Problem(NamedTuple):
    hidden: Tensor  # [N, D]
    weight: Tensor  # [V, D]
    bias: Tensor  # [V]
    targets: Tensor  # [N], -100 where masked
    advantages: Tensor  # [N], 0 for the responses of one group without spread
    sequence_ids: Tensor  # [N], sequences of ragged lengths
    old_logprobs: Tensor  # [N]
    ref_logprobs: Tensor  # [N]


class Result(NamedTuple):
    loss: Tensor
    logprobs: Tensor  # [N]
    hidden: Tensor  # gradient
    weight: Tensor  # gradient
    bias: Tensor  # gradient


def make_problem(
    n: int, d: int, v: int, *, seed: int = 0, dtype: torch.dtype = torch.float64, masked: float = 0.3
) -> Problem:
    """A third of the targets uniform (p near 0), a third drawn from the policy, a third with
    confident p in about .5 to .999.
    """
    g = torch.Generator().manual_seed(seed)
    hidden, weight = torch.randn(n, d, generator=g), torch.randn(v, d, generator=g) / d**0.5
    targets = torch.randint(v, (n,), generator=g)
    drawn = torch.multinomial((hidden @ weight.T).softmax(-1), 1, generator=g).squeeze(1) if n else targets
    kind = torch.arange(n) % 3
    targets = torch.where(kind == 1, drawn, targets)
    logit = torch.log(torch.tensor(float(v))) + 6 * torch.rand(n, generator=g)
    toward = weight[targets] / weight[targets].square().sum(1, keepdim=True).clamp(min=0.05)
    hidden = torch.where((kind == 2)[:, None], toward * logit[:, None], hidden)
    sequence_ids = torch.randint(5, (n,), generator=g).sort().values
    advantages = torch.randn(5, generator=g).index_fill(0, torch.tensor([1]), 0)[sequence_ids]
    logprobs = (hidden @ weight.T).log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
    old, ref = (logprobs + 0.4 * torch.randn(n, generator=g) for _ in range(2))
    bias = 0.3 * torch.randn(v, generator=g)
    mask = torch.rand(n, generator=g) < masked
    mask[: min(n, 1)] = False
    scalars = torch.float64 if dtype == torch.float64 else torch.float32
    return Problem(
        hidden.to(dtype),
        weight.to(dtype),
        bias.to(dtype),
        torch.where(mask, -100, targets),
        advantages.to(scalars),
        sequence_ids,
        old.to(scalars),
        ref.to(scalars),
    )


def naive_logits(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
) -> Tensor:
    logits = hidden @ weight.T
    if bias is not None:
        logits = logits + bias
    logits = logits * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return logits / temperature


def naive_logprobs(hidden: Tensor, weight: Tensor, targets: Tensor, **transforms) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies [N], 0 at masked rows."""
    log_p = naive_logits(hidden, weight, **transforms).log_softmax(-1)
    valid = targets != -100
    logprobs = log_p.gather(1, targets.clamp(min=0)[:, None]).squeeze(1)
    entropy = -torch.special.xlogy(log_p.exp(), log_p.exp()).sum(-1)
    return logprobs * valid, entropy * valid


def token_mean(targets: Tensor) -> Tensor:
    valid = targets != -100
    return valid.double() / valid.sum().clamp(min=1)


def naive_weights(reduction: str, mask: Tensor, sequence_ids: Tensor, max_length: int = 40) -> Tensor:
    """The reduction's weights in fp64, one token at a time; every sequence with an unmasked token
    counts.
    """
    ids, live = sequence_ids.tolist(), mask.tolist()
    lengths = {i: sum(m for m, j in zip(live, ids, strict=True) if i == j) for i in ids}
    tokens, sequences = sum(live), sum(length > 0 for length in lengths.values())
    weight_of = {
        "token-mean": lambda i: 1 / tokens,
        "seq-mean-token-sum": lambda i: 1 / sequences,
        "seq-mean-token-mean": lambda i: 1 / (sequences * lengths[i]),
        "seq-mean-token-sum-norm": lambda i: 1 / (sequences * max_length),
        "sum": lambda i: 1.0,
    }[reduction]
    return torch.tensor([weight_of(i) if m else 0.0 for m, i in zip(live, ids, strict=True)], dtype=torch.float64)


def naive(problem: Problem, formula: Formula, weights: Tensor | None = None, **transforms) -> Result:
    """Loss and gradients by autograd through the logits, in fp64 of the problem's own (quantised)
    numbers.
    """
    hidden, weight, bias = (x.detach().double().requires_grad_() for x in problem[:3])
    logprobs, _ = naive_logprobs(hidden, weight, problem.targets, bias=bias, **transforms)
    scalars = (x.double() for x in (problem.advantages, problem.old_logprobs, problem.ref_logprobs))
    losses = formula(logprobs, *scalars)
    loss = ((token_mean(problem.targets) if weights is None else weights.double()) * losses)[
        problem.targets != -100
    ].sum()
    loss.backward()
    return Result(loss.detach(), logprobs.detach(), hidden.grad, weight.grad, bias.grad)


RUN_OPTIONS = ("chunk_rows", "skip_rows", "validate", "sparsity")  # of Backend; a compiled program cannot ask for them


def settings_of(backend: str, bias: Tensor | None = None, **options: Any) -> dict[str, Any]:
    """head= and backend= of an op, from options of either."""
    run = {name: options.pop(name) for name in RUN_OPTIONS if name in options}
    return {"head": Head(bias=bias, **options), "backend": Backend(backend, **run)}


def fused(
    problem: Problem,
    *,
    backend: str = "chunked",
    chunk_rows: int | None = 16,
    transforms: dict | None = None,
    around_forward: AbstractContextManager | None = None,
    **kwargs,
) -> Result:
    """`linear_policy_loss` on fresh leaves; weights default to a token mean in fp64, every unmasked
    row is scored.
    """
    hidden, weight, bias = (x.detach().clone().requires_grad_() for x in problem[:3])
    settings = settings_of(backend, bias, chunk_rows=chunk_rows, skip_rows=False, **(transforms or {}))
    kwargs = {"token_weights": token_mean(problem.targets), "advantages": problem.advantages} | kwargs
    with around_forward or nullcontext():
        out = linear_policy_loss(hidden, weight, problem.targets, **settings, **kwargs)
    out.loss.backward()
    return Result(out.loss.detach(), out.logprobs, hidden.grad, weight.grad, bias.grad)


def rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


def rounding(x: Tensor, dtype: torch.dtype) -> Tensor:
    """What one rounding of x to dtype costs."""
    return x.to(dtype).double() - x


def assert_accurate(got: Tensor, want: Tensor, dtype: torch.dtype | None = None) -> None:
    """RMS error within the limit of `dtype`, got's own if None; below a dtype's normal range only
    its one rounding is allowed on top.
    """
    error, limit = (
        rms(got.double() - want),
        RMS_LIMIT[dtype or got.dtype] * rms(want) + rms(rounding(want, got.dtype)) * (got.dtype == torch.float16),
    )
    assert error <= limit, f"RMS error {error:.3g} over {limit:.3g} in {got.dtype}"


def assert_equal_results(got: Result, want: Result, rtol: float = 1e-10) -> None:
    for name, x, y in zip(Result._fields, got, want, strict=True):
        torch.testing.assert_close(
            x.double(), y.double(), rtol=rtol, atol=1e-13, msg=lambda text, name=name: f"{name}: {text}"
        )
