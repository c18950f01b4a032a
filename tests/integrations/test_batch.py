"""What a PolicyBatch knows of its sequences: the rows, or ids and weights of every token."""

from __future__ import annotations

import pytest
import torch

from gft_kernels import Backend, GroupRewards, grpo, gspo, kl, linear_policy_loss
from gft_kernels.integrations.hf import PolicyBatch, fuse_loss
from gft_kernels.losses.objectives import Weighted

from .models import llama, tokens

IDS = tokens()
TARGETS = IDS[:, 1:].clone()
TARGETS[0, :2] = -100
SHAPE = TARGETS.shape
ROWS = torch.arange(len(IDS))[:, None].expand(SHAPE)
PACKED = 10 * ROWS + (torch.arange(SHAPE[1]) > 3)  # two sequences a row
G = torch.Generator().manual_seed(0)
ADVANTAGES, WEIGHTS, RATIOS = torch.randn(SHAPE, generator=G), *torch.rand(2, *SHAPE, generator=G)
OLD, REF = torch.randn(2, *SHAPE, generator=G) - 3


def compared(objective, want, **batch):
    """Loss and gradients of a fused model's batch, and of the op on [B * (T-1)] rows."""
    model = fuse_loss(llama(), backend=Backend("chunked", skip_rows=False))
    given = {"advantages": ADVANTAGES, "token_weights": WEIGHTS, "old_logprobs": OLD, "ref_logprobs": REF}
    found = model(input_ids=IDS, policy_batch=PolicyBatch(TARGETS, objective, **{**given, **batch})).loss
    hidden = model.model(input_ids=IDS).last_hidden_state[:, :-1].flatten(0, 1)
    flat = {name: x.flatten() for name, x in given.items()}
    expected = linear_policy_loss(hidden, model.lm_head.weight, TARGETS.flatten(), objective=want, **flat).loss
    results = [(loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))) for loss in (found, expected)]
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-6)


PENALTY = kl(0.1, corrected=True, sequence_ids=True)


def test_row_is_a_sequence():
    ids = ROWS.flatten()
    compared(gspo(0.05, 0.1), gspo(0.05, 0.1, sequence_ids=ids))
    compared(gspo(0.05, 0.1) + PENALTY, gspo(0.05, 0.1, sequence_ids=ids) + PENALTY)


def test_rows_may_hold_more_than_one_sequence():
    shared = kl(0.1, corrected=True, sequence_ids=PACKED)
    want = gspo(0.05, 0.1, sequence_ids=PACKED.flatten()) + PENALTY
    compared(gspo(0.05, 0.1, sequence_ids=PACKED) + shared, want)
    compared(gspo(0.05, 0.1, sequence_ids=PACKED) + PENALTY, want)


def test_sequences_are_those_of_the_rewards():
    rewards = GroupRewards(torch.randn(len(IDS) * 10, generator=G), torch.zeros(len(IDS) * 10).long(), PACKED)
    objective = gspo(0.05, 0.1)
    model = fuse_loss(llama())
    given = {"old_logprobs": OLD}
    found = model(input_ids=IDS, policy_batch=PolicyBatch(TARGETS, objective, rewards, **given)).loss
    want = PolicyBatch(TARGETS, gspo(0.05, 0.1, sequence_ids=PACKED), rewards, **given)
    torch.testing.assert_close(found, model(input_ids=IDS, policy_batch=want).loss)
    rows = PolicyBatch(TARGETS, gspo(0.05, 0.1, sequence_ids=ROWS), rewards, **given)
    assert not torch.isclose(found, model(input_ids=IDS, policy_batch=rows).loss)


def test_importance_weights_multiply_all_but_the_penalty():
    want = Weighted(grpo(0.1, 0.2), RATIOS.flatten()) + kl(0.1)
    compared(grpo(0.1, 0.2) + kl(0.1), want, importance_weights=RATIOS)
    of_rows = RATIOS[:, 0]
    want = Weighted(gspo(0.05, 0.1, sequence_ids=ROWS.flatten()), of_rows[:, None].expand(SHAPE).flatten())
    compared(gspo(0.05, 0.1), want, importance_weights=of_rows)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (RATIOS[:, 1:], r"PolicyBatch.importance_weights has shape .*; it must be \[B, T-1\]"),
        (-RATIOS, r"importance_weights\[2\] = -.*it must be 0 or more"),
        (RATIOS * torch.nan, r"importance_weights\[2\] is NaN"),
    ],
    ids=["shape", "negative", "NaN"],
)
def test_importance_weights_that_are_none_are_refused(weights, message):
    batch = PolicyBatch(TARGETS, grpo(), ADVANTAGES, importance_weights=weights)
    with pytest.raises(ValueError, match=message):
        fuse_loss(llama())(input_ids=IDS, policy_batch=batch)
