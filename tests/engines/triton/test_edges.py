"""Inputs at the edge of what the kernels take.

NaN under clipped ratios, tiny fp16 factors, odd clips, targets nobody checked.
"""

from __future__ import annotations

import pytest
import torch

from gft_kernels import Backend, dft, gft, grpo, kl, linear_policy_loss, logits_policy_loss, reinforce
from gft_kernels.engines.triton.configs import Config, use_config

from ...helpers.cases import BACKENDS
from ...helpers.problems import make_problem, rms

PROBLEM = make_problem(20, 8, 70, dtype=torch.float32)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("objective", [grpo(), grpo() + kl(0.1), grpo(dual_clip=3.0)], ids=repr)
def test_objectives_let_no_nan_pass_for_a_number(objective, backend):
    hidden, given = PROBLEM.hidden.clone(), {"old_logprobs": PROBLEM.old_logprobs, "ref_logprobs": PROBLEM.ref_logprobs}
    row = int((PROBLEM.targets >= 0).nonzero()[2])
    hidden[row] = torch.nan
    options = {"objective": objective, "backend": Backend(backend, skip_rows=False), **given}
    for result in (
        linear_policy_loss(hidden, PROBLEM.weight, PROBLEM.targets, PROBLEM.advantages, **options),
        logits_policy_loss(hidden @ PROBLEM.weight.T, PROBLEM.targets, PROBLEM.advantages, **options),
    ):
        assert result.loss.isnan()
        assert result.logprobs[row].isnan()


@pytest.mark.parametrize("dual_clip", [1.0, 1.5, 3.0])
def test_dual_clip_of_any_value_is_that_of_eager(dual_clip):
    found = [
        linear_policy_loss(
            PROBLEM.hidden,
            PROBLEM.weight,
            PROBLEM.targets,
            PROBLEM.advantages,
            objective=grpo(dual_clip=dual_clip),
            old_logprobs=PROBLEM.old_logprobs,
            backend=backend,
        ).loss
        for backend in BACKENDS
    ]
    for loss in found[1:]:
        torch.testing.assert_close(loss, found[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("objective", [gft(0.7), dft()], ids=repr)
@pytest.mark.parametrize("mean", [0.0, 0.1])
def test_fp16_keeps_the_gradient_of_tokens_that_are_all_unlikely(mean, objective):
    # p near 1 / V: factors of 1e-5 times exponentials of 1e-5. A weight with a mean makes hundreds
    # of columns add up.
    g = torch.Generator().manual_seed(0)
    hidden, weight = 0.3 * torch.randn(16, 32, generator=g), 0.05 * torch.randn(32768, 32, generator=g) + mean
    targets, advantages = torch.randint(32768, (16,), generator=g), torch.ones(16)

    def gradients(dtype, backend):
        leaves = [x.half().to(dtype).requires_grad_() for x in (hidden, weight)]
        loss = linear_policy_loss(*leaves, targets, advantages, objective=objective, backend=backend).loss
        (loss * 2.0**22).backward()  # a loss scale that lifts every gradient into fp16's normal range
        return [x.grad for x in leaves]

    with use_config(Config(16, 512, 32, 1, 1)):
        found, want = gradients(torch.float16, "triton"), gradients(torch.float64, "eager")
    for x, y in zip(found, want, strict=True):
        rounding = y.half().double() - y
        assert rms(x.double() - y) <= 4e-4 * rms(y) + rms(rounding)


def test_unchecked_targets_leave_other_rows_alone():
    # Rows have 192 columns in tiles of 128, so that 200 is in the next row.
    problem = make_problem(20, 8, 130, dtype=torch.bfloat16, masked=0)
    backend = Backend("triton", validate=False, skip_rows=False)
    outside = problem.targets.index_fill(0, torch.tensor([2]), 200)
    found = []
    with use_config(Config(16, 128, 32, 1, 1)):
        for targets in (problem.targets, outside):
            leaf = problem.hidden.clone().requires_grad_()
            linear_policy_loss(
                leaf, problem.weight, targets, torch.ones(20), objective=reinforce(), backend=backend
            ).loss.backward()
            found.append(leaf.grad)
    others = torch.arange(20) != 2
    assert torch.equal(found[0][others], found[1][others])
