"""Reductions against one-token-at-a-time weights, and micro-batches against the whole batch."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from gft_kernels import Backend, LinearPolicyLoss, gft, linear_policy_loss, token_weights

from ..helpers.formulas import OBJECTIVES
from ..helpers.problems import make_problem, naive, naive_weights
from ..ops.test_parity import REDUCTIONS

# Lengths 1, 4, 11, 3, 20, 12; sequence 3 is masked whole and counts as a sequence.
SEQUENCE_IDS = torch.tensor([4, 0, 9, 3, 5, 1]).repeat_interleave(torch.tensor([1, 4, 11, 3, 20, 12]))
MASK = (torch.arange(51) % 3 != 1) & (SEQUENCE_IDS != 3)
CUTS = (0, 5, 19, 51)  # three micro-batches of whole sequences


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_token_weights_follow_the_table(reduction):
    got = token_weights(reduction, MASK, SEQUENCE_IDS, max_length=40)
    assert got.dtype == torch.float32
    torch.testing.assert_close(
        got.double(), naive_weights(reduction, MASK, SEQUENCE_IDS), rtol=1.5e-7, atol=0
    )  # two fp32 roundings


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_token_weights_do_not_depend_on_the_order(reduction):
    order = torch.randperm(51)
    shuffled = token_weights(reduction, MASK[order], SEQUENCE_IDS[order], max_length=40)
    assert torch.equal(shuffled, token_weights(reduction, MASK, SEQUENCE_IDS, max_length=40)[order])


@pytest.mark.parametrize(
    "counts", [(30, 6), (torch.tensor(30), torch.tensor(6)), (torch.tensor(30.0), torch.tensor(6.0))], ids=str
)
def test_token_weights_use_the_counts_of_the_step(counts):
    tokens, sequences = counts
    assert token_weights("token-mean", MASK, num_tokens=tokens)[0] == torch.tensor(1 / 30)
    assert token_weights("seq-mean-token-sum", MASK, num_sequences=sequences)[0] == torch.tensor(1 / 6)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("length", [0, 5])
def test_token_weights_of_a_masked_batch_are_zero(reduction, length):
    got = token_weights(reduction, torch.zeros(length, dtype=torch.bool), torch.arange(length), max_length=40)
    assert torch.equal(got, torch.zeros(length))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_linear_policy_loss_micro_batches_add_up_to_the_batch(reduction):
    problem = make_problem(51, 11, 37)
    targets = torch.where(MASK, problem.targets.clamp(min=0), -100)
    problem = problem._replace(targets=targets, bias=torch.zeros(37).double())
    want = naive(problem, OBJECTIVES["gft"][1], naive_weights(reduction, MASK, SEQUENCE_IDS))
    hidden, weight = (x.clone().requires_grad_() for x in problem[:2])
    module = LinearPolicyLoss(
        gft(0.7), reduction=reduction, max_length=40, backend=Backend(chunk_rows=4)
    )  # the last chunks are ragged
    total = 0.0
    for start, stop in pairwise(CUTS):
        part = slice(start, stop)
        out = module(
            hidden[part],
            weight,
            targets[part],
            problem.advantages[part],
            sequence_ids=SEQUENCE_IDS[part],
            num_tokens=int(MASK.sum()),
            num_sequences=len(set(SEQUENCE_IDS[MASK].tolist())),
        )
        out.loss.backward()
        total = total + out.loss.detach()
    torch.testing.assert_close(
        (total, hidden.grad, weight.grad), (want.loss, want.hidden, want.weight), rtol=3e-7, atol=1e-9
    )


def test_linear_policy_loss_default_is_the_mean_of_the_unmasked_tokens():
    problem = make_problem(51, 11, 37)
    default = linear_policy_loss(*problem[:2], problem.targets, problem.advantages, backend=Backend(chunk_rows=4)).loss
    want = naive(
        problem._replace(bias=torch.zeros(37).double()), OBJECTIVES["gft"][1]
    ).loss  # rows without advantage count
    torch.testing.assert_close(default, want, rtol=2e-7, atol=0)


@pytest.mark.parametrize(
    ("reduction", "mask", "options", "error", "message"),
    [
        ("mean", MASK, {}, ValueError, "reduction = 'mean'"),
        ("sum", MASK.float(), {}, TypeError, "loss_mask must be bool"),
        ("sum", MASK[None], {}, TypeError, r"loss_mask must be bool \[N\]"),
        ("seq-mean-token-sum", MASK, {}, ValueError, "needs sequence_ids"),
        ("seq-mean-token-mean", MASK, {"num_sequences": 6}, ValueError, "needs sequence_ids"),
        ("seq-mean-token-mean", MASK, {"sequence_ids": SEQUENCE_IDS[1:]}, ValueError, "must match loss_mask"),
        ("seq-mean-token-sum-norm", MASK, {"num_sequences": 6}, ValueError, "needs max_length"),
        ("seq-mean-token-sum-norm", MASK, {"num_sequences": 6, "max_length": 0}, ValueError, "needs max_length"),
    ],
)
def test_token_weights_refuse(reduction, mask, options, error, message):
    with pytest.raises(error, match=message):
        token_weights(reduction, mask, **options)


@pytest.mark.parametrize("reduction", ["seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"])
def test_token_weights_ignore_the_ids_of_masked_rows(reduction):
    mask = torch.tensor([True, True, False, True, True, False])
    found = token_weights(reduction, mask, torch.tensor([0, 0, -1, 1, 1, -1]), max_length=5)
    assert torch.equal(found, token_weights(reduction, mask, torch.tensor([0, 0, 0, 1, 1, 1]), max_length=5))
