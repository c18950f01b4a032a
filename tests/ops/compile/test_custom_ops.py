"""The custom ops: what torch demands of a registration, and what travels in numbers and text."""

from __future__ import annotations

import pytest
import torch
from torch.library import opcheck

from gft_kernels import gft, grpo, kl
from gft_kernels.losses.objectives import DFT, GFT, SFT, Reinforce, Weighted
from gft_kernels.losses.ratios import CISPO, GRPO, KL
from gft_kernels.ops.compile import logprob_op, loss_ops
from gft_kernels.ops.compile.encode import as_tensor, from_spec, objective_spec

from ...helpers.compiled import OLD, PROBLEM, REF, REWARDS, leaves

pytestmark = pytest.mark.usefixtures("plain_memory")


HEAD = (as_tensor([1.0, 0.0, 0.7]), [-100, 16, 1, 1])  # numbers and flags, as `encode` makes them
LOW_RANK = (torch.randn(33, 3), torch.randn(40, 3))  # [N, r], [V, r]
NO_LOW_RANK = (None, None)
NO_VECTORS = (None,) * 6  # all but the advantages, and the token weights


def spec(objective):
    text, numbers = objective_spec(objective)
    return text, as_tensor(numbers)


def test_compiled_program_leaves_out_gradients_nobody_wants():
    torch._dynamo.reset()
    hidden, weight = PROBLEM.hidden.clone().requires_grad_(), PROBLEM.weight
    sums = loss_ops._policy_loss(
        hidden,
        weight,
        None,
        *LOW_RANK,
        PROBLEM.targets,
        PROBLEM.advantages,
        *NO_VECTORS,
        *spec(gft(0.7)),
        as_tensor([1.0, 0.0, 1.0]),
        [-100, 0, 1, 1],
        "chunked",
        [True, False, False, False, True],
    )[6:11]
    assert [x.numel() for x in sums] == [hidden.numel(), 0, 0, 0, LOW_RANK[1].numel()]


@pytest.mark.parametrize(
    ("backend", "dtype"),
    [("chunked", torch.float32), ("chunked", torch.float16), ("triton", torch.bfloat16), ("triton", torch.float16)],
)
def test_opcheck(backend, dtype):
    hidden, weight, bias = leaves(dtype)
    low = tuple(x.to(dtype).requires_grad_() for x in LOW_RANK)
    given = (PROBLEM.advantages, OLD, REF, *(None,) * 4, *spec(grpo(dual_clip=3.0) + kl(0.1)), *HEAD, backend)
    opcheck(logprob_op._linear_logprob, (hidden, weight, bias, *low, PROBLEM.targets, *HEAD, backend))
    opcheck(loss_ops._policy_loss, (hidden, weight, bias, *low, PROBLEM.targets, *given, [True] * 5))
    opcheck(
        loss_ops._policy_loss,
        (hidden.detach(), weight, None, *NO_LOW_RANK, PROBLEM.targets, *given, [False, True, False, False, False]),
    )
    logits = (hidden.detach() @ weight.detach().T).requires_grad_()
    opcheck(loss_ops._logits_loss, (logits, PROBLEM.targets, *given, True))


def test_opcheck_group_advantages():
    opcheck(
        loss_ops._group_advantages,
        (
            REWARDS.rewards,
            REWARDS.group_ids,
            REWARDS.sequence_ids,
            PROBLEM.targets >= 0,
            "group",
            "zero",
            1e-6,
            "chunked",
        ),
    )


@pytest.mark.parametrize(
    "objective",
    [
        SFT(),
        DFT(),
        GFT(0.1),
        Reinforce(),
        GRPO(0.1, 0.28, 3.0),
        CISPO(0.5, 2.0),
        GFT(1e-7) + KL(0.02),
        GRPO() + KL(0.02, 10.0, True),
        KL(0.5) + SFT() + KL(1e-3),
        GRPO(clip_high=float("inf")),
        GRPO(sequence_ids=True) + KL(0.02, corrected=True, sequence_ids=True) + CISPO(sequence_ids=True),
    ],
    ids=repr,
)
def test_from_spec_gives_the_objective_back(objective):
    text, numbers = spec(objective)
    assert repr(from_spec(text, numbers.tolist(), {})) == repr(objective)


def test_from_spec_gives_a_tau_of_every_token_back():
    tau = torch.rand(33)
    text, numbers = spec(KL(0.5) + GFT(tau))
    objective = from_spec(text, numbers.tolist(), {"tau": tau})
    assert objective.parts[1].tau is tau
    assert objective.parts[0] == KL(0.5)


def test_from_spec_gives_weights_and_sequences_back():
    weights, ids = torch.rand(33), torch.arange(33)
    text, numbers = spec(KL(0.5) + Weighted(GRPO(sequence_ids=ids), weights) + Weighted(SFT(), weights))
    objective = from_spec(text, numbers.tolist(), {"importance_weights": weights, "sequence_ids": ids})
    assert repr(objective) == repr(KL(0.5) + Weighted(GRPO(sequence_ids=True), weights) + Weighted(SFT(), weights))


@pytest.mark.parametrize("backend", ["chunked", "triton"])
def test_opcheck_of_sequences(backend):
    hidden, weight, bias = leaves()
    vectors = (PROBLEM.advantages, OLD, None, None, torch.arange(33) // 4, torch.rand(33), None)
    objective = Weighted(GRPO(0.1, 0.1, sequence_ids=True), torch.rand(33))
    given = (*vectors, *spec(objective), *HEAD, backend)
    wanted = [True, True, True, False, False]
    opcheck(loss_ops._policy_loss, (hidden, weight, bias, *NO_LOW_RANK, PROBLEM.targets, *given, wanted))
    logits = (hidden.detach() @ weight.detach().T).requires_grad_()
    opcheck(loss_ops._logits_loss, (logits, PROBLEM.targets, *given, True))


@pytest.mark.parametrize("backend", ["chunked", "triton"])
@pytest.mark.parametrize(
    "targets", [PROBLEM.targets.clamp(min=0), torch.full_like(PROBLEM.targets, -100)], ids=["none masked", "all masked"]
)
def test_opcheck_outputs_share_no_memory_whatever_is_masked(targets, backend):
    hidden, weight, bias = leaves()
    vectors = (torch.ones(33), None, None, torch.rand(33), None, None, torch.ones(33))
    given = (*vectors, *spec(gft(torch.rand(33))), *HEAD, backend)
    opcheck(logprob_op._linear_logprob, (hidden, weight, bias, *NO_LOW_RANK, targets, *HEAD, backend))
    opcheck(
        loss_ops._policy_loss, (hidden, weight, bias, *NO_LOW_RANK, targets, *given, [True, True, True, False, False])
    )
    opcheck(loss_ops._logits_loss, ((hidden.detach() @ weight.detach().T).requires_grad_(), targets, *given, True))


def test_opcheck_hidden_of_any_strides():
    hidden = PROBLEM.hidden.T.contiguous().T.requires_grad_()
    opcheck(
        loss_ops._policy_loss,
        (
            hidden,
            PROBLEM.weight,
            None,
            *NO_LOW_RANK,
            PROBLEM.targets,
            PROBLEM.advantages,
            *NO_VECTORS,
            *spec(gft(0.7)),
            *HEAD,
            "chunked",
            [True, False, False, False, False],
        ),
    )
