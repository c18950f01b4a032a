"""The ops inside training programs: compiled callers, many steps, memory that stays."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gft_kernels import Head, gft, linear_logprob, linear_policy_loss, sft

from .device import DEVICE, DRY, MARKS, make_problem, relative, sized

pytestmark = MARKS


def losses(dtype: torch.dtype, backend: str, steps: int, objective) -> list[float]:
    """Losses of a tiny model, one hidden layer and a head, trained on one batch."""
    torch.manual_seed(0)
    vocabulary, size, rows = sized(5003, 131), sized(128, 16), sized(512, 32)
    model = nn.Sequential(nn.Embedding(vocabulary, size), nn.Linear(size, size), nn.Tanh()).to(DEVICE)
    head = nn.Linear(size, vocabulary, bias=False).to(DEVICE)
    optimiser = torch.optim.AdamW([*model.parameters(), *head.parameters()], lr=3e-3)
    tokens = torch.randint(vocabulary, (rows,), device=DEVICE)
    targets = (tokens * 7 + 3) % vocabulary
    advantages = torch.rand(rows, device=DEVICE) + 0.5
    found = []
    for _ in range(steps):
        optimiser.zero_grad()
        hidden, weight = model(tokens).to(dtype), head.weight.to(dtype)
        loss = linear_policy_loss(hidden, weight, targets, advantages, objective=objective, backend=backend).loss
        loss.backward()
        optimiser.step()
        found.append(loss.item())
    return found


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 2e-2)])
def test_32_steps_follow_eager(dtype, tolerance):
    found, expected = (losses(dtype, backend, sized(32, 6), sft()) for backend in ("triton", "eager"))
    assert expected[-1] < sized(0.7, 0.99) * expected[0]
    assert max(abs(a - b) / expected[0] for a, b in zip(found, expected, strict=True)) <= tolerance


def test_twenty_steps_leave_no_memory_behind():
    problem = make_problem(sized(500, 24), sized(256, 24), sized(32001, 97), torch.bfloat16)

    def step() -> None:
        leaves = problem.leaves()
        loss = linear_policy_loss(
            leaves.hidden,
            leaves.weight,
            leaves.targets,
            leaves.groups(),
            token_weights=leaves.weights,
            backend="triton",
        ).loss
        out = linear_logprob(leaves.hidden, leaves.weight, leaves.targets, backend="triton")
        (loss + out.logprobs.mean() + out.entropy.mean()).backward()

    def held() -> int:
        return 0 if DRY else torch.cuda.memory_allocated()

    for _ in range(2):
        step()
    before = held()
    for _ in range(sized(20, 2)):
        step()
    assert held() == before


def fused_caller(hidden, weight, p):
    result = linear_policy_loss(
        torch.tanh(hidden) * 2,
        weight,
        p.targets,
        p.advantages,
        objective=gft(0.7),
        token_weights=p.weights,
        backend="triton",
    )
    return result.loss.square() + result.loss


def grouped_caller(hidden, weight, p):
    return linear_policy_loss(
        hidden * 1.5, weight, p.targets, p.groups(), token_weights=p.weights, head=Head(softcap=8.0), backend="triton"
    ).loss


def logprob_caller(hidden, weight, p):
    out = linear_logprob(torch.tanh(hidden) * 2, weight, p.targets, backend="triton")
    return (p.weights * (p.advantages * out.logprobs - 0.1 * out.entropy)).sum()


@pytest.mark.usefixtures("plain_memory")
@pytest.mark.parametrize(
    ("caller", "compiler"),
    [(f, "aot_eager") for f in (fused_caller, grouped_caller, logprob_caller)]
    + sized([(fused_caller, "inductor")], []),
)
def test_compiled_caller_without_graph_breaks_equals_eager(caller, compiler, monkeypatch):
    if compiler == "inductor":
        inductor = pytest.importorskip("torch._inductor.config")
        monkeypatch.setattr(inductor, "compile_threads", 1)
    torch._dynamo.reset()
    problem = make_problem(sized(200, 24), sized(128, 24), sized(5003, 97), torch.float32)
    plain, compiled = problem.leaves(), problem.leaves()
    want = caller(plain.hidden, plain.weight, plain)
    got = torch.compile(caller, backend=compiler, fullgraph=True)(compiled.hidden, compiled.weight, compiled)
    want.backward()
    got.backward()
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    assert relative(compiled.hidden.grad, plain.hidden.grad) <= 1e-5
    assert relative(compiled.weight.grad, plain.weight.grad) <= 1e-5
