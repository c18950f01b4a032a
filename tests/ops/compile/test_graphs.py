"""What changes from step to step makes no new graph: sizes, and the numbers of schedules."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from gft_kernels import (
    GroupRewards,
    Head,
    LinearPolicyLoss,
    cispo,
    dft,
    gft,
    grpo,
    gspo,
    kl,
    linear_logprob,
    linear_policy_loss,
    logits_policy_loss,
    reinforce,
    sft,
    token_weights,
)

from ...helpers.cases import BACKENDS

pytestmark = pytest.mark.usefixtures("plain_memory")

D, V = 6, 20
# One for every op, as a whole suite of them would take minutes: tau, clips, beta, temperature,
# counts and lengths change together. The other backends share the graphs' causes.
MODULE = LinearPolicyLoss(reduction="seq-mean-token-mean")


class Step(NamedTuple):
    """The inputs of one step of training, each with a size or a number of its own."""

    hidden: torch.Tensor
    weight: torch.Tensor
    targets: torch.Tensor
    advantages: torch.Tensor
    sequence_ids: torch.Tensor
    old: torch.Tensor
    rewards: torch.Tensor
    number: float
    count: int
    backend: str


def step_inputs(rng: random.Random, backend: str) -> Step:
    rows, responses = rng.randrange(2, 60), rng.randrange(2, 9)
    targets = torch.randint(V, (rows,)).masked_fill(torch.rand(rows) < 0.2, -100)
    return Step(
        torch.randn(rows, D, requires_grad=True),
        torch.randn(V, D, requires_grad=True),
        targets,
        torch.randn(rows),
        torch.randint(responses, (rows,)),
        torch.randn(rows) - 3,
        torch.rand(responses),
        rng.uniform(0.1, 0.9),
        rng.randrange(2, 500),
        backend,
    )


def log_probs(s: Step):
    head = Head(scale=1 + s.number, softcap=5 + s.number, temperature=s.number)
    found = linear_logprob(s.hidden, s.weight, s.targets, head=head, backend=s.backend)
    return (found.logprobs * s.number + found.entropy).sum()


def every_objective(s: Step):
    x = s.number
    ratios = grpo(x, 2 * x, 1 + x) + grpo(x, x) + cispo(x, x) + kl(x)
    objective = ratios + gft(x) + gft(x / 2) + reinforce() + sft() + dft()
    given = {"old_logprobs": s.old, "ref_logprobs": s.old, "head": Head(temperature=x), "backend": s.backend}
    found = linear_policy_loss(s.hidden, s.weight, s.targets, s.advantages, objective=objective, **given)
    return found.loss + sum(found.stats.values())


def on_logits(s: Step):
    given = {"objective": grpo(s.number) + kl(s.number), "old_logprobs": s.old, "ref_logprobs": s.old}
    head = Head(temperature=s.number)
    logits = s.hidden @ s.weight.T
    return logits_policy_loss(logits, s.targets, s.advantages, **given, head=head, backend=s.backend).loss


def rewards_and_weights(s: Step):
    advantages = GroupRewards(s.rewards, torch.arange(s.rewards.shape[0]) // 2, s.sequence_ids)
    mask = s.targets != -100
    weights = token_weights("token-mean", mask, num_tokens=s.count) + token_weights(
        "seq-mean-token-sum-norm", mask, s.sequence_ids, num_sequences=s.count, max_length=99
    )
    given = {"objective": gft(s.number), "token_weights": weights, "backend": s.backend}
    return linear_policy_loss(s.hidden, s.weight, s.targets, advantages, **given).loss


def a_tau_of_every_token(s: Step):
    objective = kl(s.number) + gft(s.number * torch.sigmoid(s.advantages))
    given = {"objective": objective, "ref_logprobs": s.old, "backend": s.backend}
    return linear_policy_loss(s.hidden, s.weight, s.targets, s.advantages, **given).loss


def a_module(s: Step):
    return MODULE(s.hidden, s.weight, s.targets, s.advantages, sequence_ids=s.sequence_ids, num_sequences=s.count).loss


def a_function(s: Step):
    def objective(logprobs, *, advantages, **_):
        return -logprobs * advantages * s.number

    return linear_policy_loss(s.hidden, s.weight, s.targets, s.advantages, objective=objective, backend=s.backend).loss


PROGRAMS = [log_probs, every_objective, on_logits, rewards_and_weights, a_tau_of_every_token, a_module, a_function]


def run(program: Callable, dynamic: bool | None, backend: str, steps: int, compiler: str = "aot_eager") -> int:
    """Graphs made in `steps` steps, each of which is checked against the program as it stands."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    counter, rng = CompileCounterWithBackend(compiler), random.Random(0)
    compiled = torch.compile(program, backend=counter, fullgraph=True, dynamic=dynamic)
    for _ in range(steps):
        inputs = step_inputs(rng, backend)
        MODULE.objective = gspo(inputs.number / 20, inputs.number / 10)
        found = []
        for loss in (compiled(inputs), program(inputs)):
            gradients = torch.autograd.grad(loss, (inputs.hidden, inputs.weight))
            found.append((loss.detach(), *gradients))
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5, equal_nan=True)
    return counter.frame_count


@pytest.mark.parametrize("dynamic", [None, True], ids=["dynamic None", "dynamic True"])
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_two_hundred_steps_make_two_graphs(program, dynamic):
    assert run(program, dynamic, "chunked", 200) <= 2


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "chunked"])
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_steps_of_other_backends_make_two_graphs(program, backend):
    assert run(program, None, backend, 6) <= 2


def test_steps_of_inductor_make_two_graphs():
    assert run(every_objective, None, "chunked", 6, "inductor") <= 2
