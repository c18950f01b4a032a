"""formulas.py in a kernel of its own against objectives.py, advantages.py and fp64, at the edges of
every branch.
"""

from __future__ import annotations

import math

import pytest
import torch
import triton
import triton.language as tl

from gft_kernels import GroupRewards, cispo, dft, gft, group_advantages, grpo, kl, linear_policy_loss, reinforce, sft
from gft_kernels.engines.triton import formulas
from gft_kernels.engines.triton.arguments import objective_constants
from gft_kernels.losses.objectives import losses_and_coefficients

from ...helpers.problems import make_problem

# Log-probs: impossible, far below every cut, either side of e^-60 where a ratio stops, ordinary,
# exactly one half, nearly certain, certain.
LOGPROBS = (-math.inf, -1e4, -60.1, -60.0, -59.9, -5.0, math.log(0.5), -1e-3, -1e-30, 0.0)
ADVANTAGES = (0.0, 1.5, -0.75)
# old and reference: on policy, ratios within and beyond either clip and dual_clip, beyond e^60
# either way, impossible.
SHIFTS = (0.0, 0.05, -0.05, 0.3, -0.3, 2.0, -2.0, 60.5, -60.5, 200.0, math.inf)
RATIO_OBJECTIVES = {
    "grpo": grpo(),
    "dapo": grpo(clip_low=0.1, clip_high=0.28),
    "dual-clip": grpo(dual_clip=3.0),
    "cispo": cispo(),
    "cispo narrow": cispo(clip_low=0.3, clip_high=0.4),
}
OBJECTIVES = {
    "sft": sft(),
    "dft": dft(),
    "gft": gft(0.7),
    "gft at p": gft(0.5),
    "tau 0": gft(0.0),
    "tau above 1": gft(1.5),
    "reinforce": reinforce(),
    **RATIO_OBJECTIVES,
}


@triton.jit
def objective_kernel(
    logprobs_ptr,
    advantages_ptr,
    old_ptr,
    ref_ptr,
    out_ptr,
    K,
    KIND: tl.constexpr,
    TAU: tl.constexpr,
    CLIP_LOW: tl.constexpr,
    CLIP_HIGH: tl.constexpr,
    DUAL_CLIP: tl.constexpr,
    BETA: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out [2, K]: loss and coefficient."""
    row = tl.arange(0, BLOCK)
    live = row < K
    logprobs = tl.load(logprobs_ptr + row, mask=live, other=0.0)
    advantages = tl.load(advantages_ptr + row, mask=live, other=0.0)
    old = tl.load(old_ptr + row, mask=live, other=0.0)
    ref = tl.load(ref_ptr + row, mask=live, other=0.0)
    loss, coefficient = formulas.objective_terms(
        logprobs, advantages, old, ref, KIND, TAU, CLIP_LOW, CLIP_HIGH, DUAL_CLIP, BETA
    )
    tl.store(out_ptr + row, loss, mask=live)
    tl.store(out_ptr + K + row, coefficient, mask=live)


def kernel_terms(objective, logprobs, advantages, old, ref) -> torch.Tensor:
    """[2, K]; without old log-probs the kernel is handed the row's own, as `finalise` does."""
    out = torch.empty(2, len(logprobs), dtype=logprobs.dtype)
    given = (logprobs, advantages, logprobs if old is None else old, ref)
    objective_kernel[(1,)](
        *given, out, len(logprobs), **objective_constants(objective), BLOCK=triton.next_power_of_2(len(logprobs))
    )
    return out


def grid(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Every combination of LOGPROBS, ADVANTAGES and SHIFTS, the references shifted the other way."""
    lp, a, shift = (
        x.flatten()
        for x in torch.meshgrid(*(torch.tensor(x, dtype=dtype) for x in (LOGPROBS, ADVANTAGES, SHIFTS)), indexing="ij")
    )
    shifted = torch.where(shift.isinf(), -torch.inf, lp - shift)
    return lp, a, shifted, torch.where(shift.isinf(), -torch.inf, lp + shift / 3)


def assert_terms(objective, lp, a, old, ref) -> None:
    want = torch.stack(
        losses_and_coefficients(objective, lp, {"advantages": a, "old_logprobs": old, "ref_logprobs": ref})
    )
    got = kernel_terms(objective, lp, a, old, ref)
    digits = 1e-12 if lp.dtype == torch.float64 else 1e-6
    torch.testing.assert_close(got, want, rtol=digits, atol=digits, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("penalty", [None, kl(0.05)], ids=["plain", "kl"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_objective_terms_are_those_of_objectives(name, penalty, dtype):
    lp, a, old, ref = grid(dtype)
    objective = OBJECTIVES[name]
    if penalty is not None:
        objective = objective + penalty
    assert_terms(objective, lp, a, old, ref)


@pytest.mark.parametrize("name", RATIO_OBJECTIVES)
def test_objective_terms_without_old_logprobs_are_on_policy(name):
    lp, a, _, ref = grid(torch.float64)
    assert_terms(RATIO_OBJECTIVES[name], lp, a, None, ref)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("side", [0.5, 2.0])  # both powers of two: e^(log p - old) is the edge itself
@pytest.mark.parametrize("objective", [grpo(clip_low=0.5, clip_high=1.0), cispo(clip_low=0.5, clip_high=1.0)], ids=repr)
def test_objective_terms_at_the_clip_itself_keep_the_gradient(objective, side, dtype):
    a = torch.tensor([1.0, -1.0], dtype=dtype)
    lp = torch.full((2,), math.log(side), dtype=dtype)
    old = torch.zeros(2, dtype=dtype)
    assert torch.equal(lp.exp(), torch.full((2,), side, dtype=dtype))
    assert torch.equal(kernel_terms(objective, lp, a, old, old)[1], -side * a)
    assert_terms(objective, lp, a, old, old)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_objective_terms_at_tau_are_not_rectified(dtype):
    lp, a = torch.tensor([math.log(0.5)], dtype=dtype), torch.ones(1, dtype=dtype)
    assert lp.exp().item() == 0.5
    assert kernel_terms(gft(0.5), lp, a, lp, lp)[1].item() == -1.0
    assert kernel_terms(gft(0.5000001), lp, a, lp, lp)[1].item() == -0.5


@triton.jit
def log1p_kernel(x_ptr, out_ptr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(out_ptr + at, formulas.log1p(tl.load(x_ptr + at)))


@pytest.mark.parametrize(
    ("dtype", "digits"), [(torch.float32, 2.0**-21), (torch.float64, 2.0**-50)], ids=["fp32", "fp64"]
)
def test_log1p_keeps_the_last_digits_everywhere(dtype, digits):
    # 0, every magnitude of normal numbers to 1e30, and a fine comb over 0.25 where the series ends.
    # Rounding 1 + x there to half a digit is 4.5 half digits of the logarithm: log 1.25 = 0.22.
    x = torch.cat([torch.zeros(1), torch.logspace(-37, 30, 767), torch.linspace(0.2, 0.3, 256)]).to(dtype)
    got = torch.empty_like(x)
    log1p_kernel[(1,)](x, got, BLOCK=1024)
    want = torch.log1p(x.double())
    assert got[0] == 0
    torch.testing.assert_close(got.double(), want, rtol=digits, atol=0)


@triton.jit
def advantage_kernel(
    sequence_ptr,
    rewards_ptr,
    group_ids_ptr,
    out_ptr,
    K,
    B,
    SCALE: tl.constexpr,
    KEEP_SINGLE: tl.constexpr,
    EPS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    row = tl.arange(0, BLOCK_N)
    sequence = tl.load(sequence_ptr + row, mask=row < K, other=0)
    tl.store(
        out_ptr + row,
        formulas.group_advantage(sequence, row < K, rewards_ptr, group_ids_ptr, B, SCALE, KEEP_SINGLE, EPS, BLOCK_B),
    )


SCALES = {"group": formulas.GROUP_SCALE, "batch": formulas.BATCH_SCALE, "none": formulas.NO_SCALE}


def kernel_advantages(rewards, group_ids, scale="group", singleton="reward", eps=1e-6, block_b=16) -> torch.Tensor:
    """The advantage of every response in turn, B not a multiple of the rows' block either; rows
    beyond B hold 0.
    """
    count = len(rewards)
    rows = max(triton.next_power_of_2(count + 1), 16)
    out = torch.empty(rows, dtype=rewards.dtype)
    advantage_kernel[(1,)](
        torch.arange(count).to(group_ids.dtype),
        rewards,
        group_ids,
        out,
        count,
        count,
        SCALES[scale],
        singleton == "reward",
        eps,
        BLOCK_N=rows,
        BLOCK_B=block_b,
    )
    assert torch.equal(out[count:], torch.zeros(rows - count, dtype=rewards.dtype))
    return out[:count]


def ragged(dtype: torch.dtype, ids: torch.dtype = torch.int64) -> tuple[torch.Tensor, torch.Tensor]:
    """37 responses (two blocks of 16 and five): groups of 1 to 9 with scattered ids, one without
    spread, two of one response.
    """
    group_ids = torch.repeat_interleave(
        torch.tensor([70, -3, 5, 12, 900, 6, 8, 0]), torch.tensor([9, 1, 8, 5, 1, 6, 3, 4])
    )
    rewards = torch.rand(37)
    rewards[group_ids == 5] = 0.35
    order = torch.randperm(37)
    return rewards[order].to(dtype), group_ids[order].to(ids)


@pytest.mark.parametrize("ids", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("singleton", ["reward", "zero"])
@pytest.mark.parametrize("scale", SCALES)
def test_group_advantage_is_that_of_advantages(scale, singleton, dtype, ids):
    rewards, group_ids = ragged(dtype, ids)
    got = kernel_advantages(rewards, group_ids, scale, singleton)
    want = group_advantages(rewards.double(), group_ids, scale=scale, singleton=singleton)
    digits = 1e-12 if dtype == torch.float64 else 2e-6
    torch.testing.assert_close(got.double(), want, rtol=digits, atol=digits)
    assert torch.equal(got == 0, want == 0)


@pytest.mark.parametrize("eps", [1e-6, 0.5])
@pytest.mark.parametrize("block_b", [16, 64])  # B over the block, and under it
def test_group_advantage_adds_eps_whatever_the_block(block_b, eps):
    rewards, group_ids = ragged(torch.float64)
    want = group_advantages(rewards, group_ids, eps=eps)
    torch.testing.assert_close(
        kernel_advantages(rewards, group_ids, eps=eps, block_b=block_b), want, rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_group_advantage_of_equal_rewards_is_exactly_zero(dtype, scale):
    # Eight, and sizes whose sum is rounded: the mean of seven 0.35s is not 0.35, their std not 0:
    # the formula alone is no zero.
    sizes = torch.tensor([8, 7, 5, 11, 3])
    rewards = torch.cat([torch.full((34,), 0.35), torch.tensor([0.0, 1.0])]).to(dtype)
    got = kernel_advantages(rewards, torch.cat([torch.repeat_interleave(sizes), torch.tensor([9, 9])]), scale)
    assert torch.equal(got[:34], torch.zeros(34, dtype=dtype))
    assert (got[34] < 0) & (got[35] > 0)


@pytest.mark.parametrize("scale", SCALES)
def test_group_advantage_under_a_common_offset_keeps_its_digits(scale):
    # Quarters on 2^16: rewards and sums of 37 are exact in fp32, the squares are 2^32 and would
    # leave nothing of a one-pass variance.
    quarters = (torch.rand(37) * 8).round() / 4
    _, group_ids = ragged(torch.float32)
    got = kernel_advantages(quarters + 2.0**16, group_ids, scale, "zero")
    want = group_advantages(quarters.double(), group_ids, scale=scale, singleton="zero")
    error = 2.0**16 * 2.0**-24  # a mean of 2^16 is rounded to 1/256
    torch.testing.assert_close(got.double(), want, rtol=0, atol=8 * error)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("singleton", ["reward", "zero"])
def test_group_advantage_of_a_batch_of_one(singleton, scale):
    got = kernel_advantages(torch.tensor([0.7]), torch.tensor([3]), scale, singleton)
    assert torch.equal(got, group_advantages(torch.tensor([0.7]), torch.tensor([3]), scale=scale, singleton=singleton))


@pytest.mark.parametrize("ids", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("scale", SCALES)
def test_linear_policy_loss_normalises_group_rewards_in_the_kernel(scale, ids):
    # 70 responses: more than a block of 64 in finalise.py, and not a multiple of it. Rows without
    # spread are skipped: chunks gather.
    problem = make_problem(50, 11, 37)
    rewards, group_ids = torch.rand(70).double(), torch.randint(9, (70,))
    rewards[group_ids == 4] = 0.35
    sequence_ids = torch.randint(70, (50,))
    groups = GroupRewards(
        rewards, group_ids.to(ids), torch.where(problem.targets == -100, 10**6, sequence_ids).to(ids), scale=scale
    )
    by_hand = group_advantages(rewards, group_ids, scale=scale)[sequence_ids]
    results = []
    for advantages in (groups, by_hand):
        hidden = problem.hidden.clone().requires_grad_()
        out = linear_policy_loss(hidden, problem.weight, problem.targets, advantages, backend="triton")
        out.loss.backward()
        results.append((out.loss.detach(), out.logprobs, out.coefficients, hidden.grad))
    torch.testing.assert_close(*results, rtol=1e-11, atol=1e-13, equal_nan=True)
    assert (by_hand[problem.targets != -100] == 0).any()
    assert results[0][0] != 0
