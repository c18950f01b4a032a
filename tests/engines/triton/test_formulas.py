"""formulas.py in a kernel of its own against objectives.py, at the edges of every branch."""

from __future__ import annotations

import math

import pytest
import torch
import triton
import triton.language as tl

from gft_kernels import cispo, dft, gft, grpo, kl, reinforce, sft
from gft_kernels.engines.triton import arithmetic, formulas
from gft_kernels.engines.triton.arguments import objective_numbers
from gft_kernels.losses.objectives import losses_and_coefficients

# Log-probs: impossible, far below every cut, either side of e^-60 where a ratio stops, ordinary,
# exactly one half, nearly certain, certain.
LOGPROBS = (-math.inf, -1e4, -60.1, -60.0, -59.9, -5.0, math.log(0.5), -1e-3, -1e-30, 0.0)
ADVANTAGES = (0.0, 1.5, -0.75)
# For the old and the reference policy: on policy, ratios within and beyond either clip and
# dual_clip, beyond e^60 either way, impossible.
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


PENALTIES = {
    "plain": None,
    "kl": kl(0.05),
    "kl clamped": kl(0.05, clamp=0.4),
    "kl corrected": kl(0.05, corrected=True),
    "kl corrected, clamped": kl(0.05, clamp=0.4, corrected=True),
}


@triton.jit
def objective_kernel(
    logprobs_ptr,
    advantages_ptr,
    old_ptr,
    ref_ptr,
    out_ptr,
    K,
    tau: tl.float64,
    clip_low: tl.float64,
    clip_high: tl.float64,
    dual_clip: tl.float64,
    beta: tl.float64,
    kl_clamp: tl.float64,
    KIND: tl.constexpr,
    PENALISED: tl.constexpr,
    CORRECTED: tl.constexpr,
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
        logprobs,
        advantages,
        old,
        ref,
        arithmetic.number(tau, logprobs),
        clip_low,
        clip_high,
        dual_clip,
        beta,
        kl_clamp,
        KIND,
        PENALISED,
        CORRECTED,
    )
    tl.store(out_ptr + row, loss, mask=live)
    tl.store(out_ptr + K + row, coefficient, mask=live)


def kernel_terms(objective, logprobs, advantages, old, ref) -> torch.Tensor:
    """[2, K]. Without old log-probs the kernel is handed the row's own, as `finalise` does."""
    out = torch.empty(2, len(logprobs), dtype=logprobs.dtype)
    given = (logprobs, advantages, logprobs if old is None else old, ref)
    penalised = "ref_logprobs" in objective.needs
    block = triton.next_power_of_2(len(logprobs))
    objective_kernel[(1,)](*given, out, len(logprobs), **objective_numbers(objective), PENALISED=penalised, BLOCK=block)
    return out


def grid(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Every combination of LOGPROBS, ADVANTAGES and SHIFTS; old and ref are shifted either way."""
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
@pytest.mark.parametrize("penalty", PENALTIES.values(), ids=PENALTIES)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_objective_terms_are_those_of_objectives(name, penalty, dtype):
    lp, a, old, ref = grid(dtype)
    objective = OBJECTIVES[name]
    if penalty is not None:
        objective = objective + penalty
    assert_terms(objective, lp, a, old, ref)


ON_POLICY = {**RATIO_OBJECTIVES, "corrected kl": gft(0.7) + kl(0.05, corrected=True)}


@pytest.mark.parametrize("name", ON_POLICY)
def test_objective_terms_without_old_logprobs_are_on_policy(name):
    lp, a, _, ref = grid(torch.float64)
    assert_terms(ON_POLICY[name], lp, a, None, ref)


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
    tl.store(out_ptr + at, arithmetic.log1p(tl.load(x_ptr + at)))


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
