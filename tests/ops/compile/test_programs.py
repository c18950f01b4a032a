"""The ops in compiled programs: one graph, and the results of the program that is not compiled."""

from __future__ import annotations

import pytest
import torch

from gft_kernels import (
    Head,
    LinearPolicyLoss,
    gft,
    grpo,
    kl,
    linear_logprob,
    linear_policy_loss,
    logits_policy_loss,
)

from ...helpers.cases import BACKENDS
from ...helpers.compiled import OLD, PROBLEM, REF, REWARDS, leaves
from ...helpers.problems import settings_of

pytestmark = pytest.mark.usefixtures("plain_memory")

MODULE = LinearPolicyLoss(grpo(), reduction="seq-mean-token-mean")


def psft(logprobs, *, old_logprobs, **_):
    ratio = (logprobs - old_logprobs).exp()
    return -torch.minimum(ratio, ratio.clamp(0.8, 1.2))


def loss(h, w, b, backend, objective, advantages=PROBLEM.advantages, head=None, **given):
    settings = settings_of(backend, b, **(head or {}))
    return linear_policy_loss(
        torch.tanh(h) * 2, w, PROBLEM.targets, advantages, objective=objective, **settings, **given
    )


def of_logits(h, w, b, backend, objective=gft(0.3), **given):  # noqa: B008
    head = Head(temperature=0.7)
    return logits_policy_loss(
        h @ w.T + b, PROBLEM.targets, PROBLEM.advantages, objective=objective, head=head, backend=backend, **given
    )


def scores(h, w, b, backend):
    found = linear_logprob(h * 1.1, w, PROBLEM.targets, head=Head(bias=b), backend=backend)
    return found.logprobs.square().sum() + 0.1 * found.entropy.sum(), *found


PROGRAMS = {
    "gft": lambda h, w, b, backend: loss(h, w, b, backend, gft(0.7)),
    "rewards, ratio, kl, transforms": lambda h, w, b, backend: loss(
        h,
        w,
        b,
        backend,
        grpo(clip_high=0.28) + kl(0.02, corrected=True),
        REWARDS,
        {"softcap": 5.0, "temperature": 0.7},
        old_logprobs=OLD,
        ref_logprobs=REF,
    ),
    "a function": lambda h, w, b, backend: loss(h, w, b, backend, psft, old_logprobs=OLD),
    "module": lambda h, w, b, backend: MODULE(
        h, w, PROBLEM.targets, PROBLEM.advantages, sequence_ids=PROBLEM.sequence_ids
    ),
    "logits": of_logits,
    "logits, a function": lambda h, w, b, backend: of_logits(h, w, b, backend, psft, old_logprobs=OLD),
    "log-probs": scores,
}


def flat(result):
    """The tensors of a program's result; stats in the order of their names."""
    tensors = [x for x in result if isinstance(x, torch.Tensor)]
    return tensors + [x for y in result if isinstance(y, dict) for _, x in sorted(y.items())]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", PROGRAMS)
def test_compiled_program_is_one_graph_and_equals_eager(name, backend):
    torch._dynamo.reset()
    program = PROGRAMS[name]
    plain, compiled = leaves(), leaves()
    want = program(*plain, backend)
    got = torch.compile(program, fullgraph=True, backend="aot_eager")(*compiled, backend)
    want[0].square().backward()
    got[0].square().backward()
    torch.testing.assert_close(flat(got), flat(want), rtol=1e-5, atol=1e-6, equal_nan=True)
    for x, y in zip(compiled, plain, strict=True):
        assert (x.grad is None) == (y.grad is None)
        if x.grad is not None:
            torch.testing.assert_close(x.grad, y.grad, rtol=1e-5, atol=1e-7)


def test_compiled_program_of_inductor_equals_eager():
    torch._dynamo.reset()
    plain, compiled = leaves(), leaves()
    want, got = PROGRAMS["gft"](*plain, "chunked"), torch.compile(PROGRAMS["gft"], fullgraph=True)(*compiled, "chunked")
    want.loss.backward()
    got.loss.backward()
    for x, y in zip(compiled, plain, strict=True):
        torch.testing.assert_close(x.grad, y.grad, rtol=1e-5, atol=1e-7)


def test_compiled_program_checks_values():
    torch._dynamo.reset()
    targets = PROBLEM.targets.clone()
    targets[3] = 40

    def program(hidden):
        return linear_policy_loss(hidden, PROBLEM.weight, targets, PROBLEM.advantages).loss

    with pytest.raises(ValueError, match=r"targets\[3\] = 40 is outside"):
        torch.compile(program, fullgraph=True, backend="aot_eager")(PROBLEM.hidden)


def test_compiled_program_takes_a_new_tau_and_temperature_each_step():
    torch._dynamo.reset()

    def program(hidden, tau, temperature):
        head = Head(temperature=temperature)
        return linear_policy_loss(
            hidden,
            PROBLEM.weight,
            PROBLEM.targets,
            PROBLEM.advantages,
            objective=gft(tau) + kl(tau),
            head=head,
            ref_logprobs=REF,
        ).loss

    compiled = torch.compile(program, fullgraph=True, backend="aot_eager")
    for tau, temperature in ((0.1, 1.0), (0.3, 0.9), (0.5, 0.8)):
        torch.testing.assert_close(
            compiled(PROBLEM.hidden, tau, temperature), program(PROBLEM.hidden, tau, temperature)
        )


def test_compiled_program_keeps_a_namesake_of_a_built_in():
    class GFT(type(gft())):  # not the built-in, though it says so
        def __call__(self, logprobs, **_):
            return -2 * logprobs

    torch._dynamo.reset()
    plain = linear_policy_loss(PROBLEM.hidden, PROBLEM.weight, PROBLEM.targets, torch.ones(33), objective=GFT(0.7)).loss
    program = torch.compile(
        lambda h: linear_policy_loss(h, PROBLEM.weight, PROBLEM.targets, torch.ones(33), objective=GFT(0.7)).loss,
        backend="aot_eager",
    )
    torch.testing.assert_close(program(PROBLEM.hidden), plain)


def exploding(logprobs, *, old_logprobs, **_):
    return -(logprobs - old_logprobs).exp()


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_program_of_a_function_ignores_rows_without_weight(backend):
    torch._dynamo.reset()
    row = int((PROBLEM.targets >= 0).nonzero()[3])
    weights, old = torch.ones(33).index_fill(0, torch.tensor(row), 0), OLD.clone()
    old[row] = -200  # its ratio overflows
    leaf = PROBLEM.hidden.clone().requires_grad_()
    program = torch.compile(
        lambda h: (
            linear_policy_loss(
                h,
                PROBLEM.weight,
                PROBLEM.targets,
                objective=exploding,
                old_logprobs=old,
                token_weights=weights,
                backend=backend,
            ).loss
        ),
        fullgraph=True,
        backend="aot_eager",
    )
    program(leaf).backward()
    assert leaf.grad.isfinite().all()
    assert leaf.grad.abs().max() > 1e-3


def test_compiled_program_of_a_function_checks_values():
    torch._dynamo.reset()
    old = OLD.index_fill(0, (PROBLEM.targets >= 0).nonzero()[0], torch.nan)
    logits, targets = torch.randn(33, 40), PROBLEM.targets.index_fill(0, torch.tensor(2), 45)
    programs = {
        "old_logprobs.* is NaN": lambda: (
            linear_policy_loss(
                PROBLEM.hidden, PROBLEM.weight, PROBLEM.targets, objective=exploding, old_logprobs=old
            ).loss
        ),
        r"targets\[2\] = 45 is outside": lambda: (
            logits_policy_loss(logits, targets, objective=exploding, old_logprobs=OLD).loss
        ),
    }
    for message, program in programs.items():
        with pytest.raises(ValueError, match=message):
            torch.compile(program, fullgraph=True, backend="aot_eager")()
