"""Rows that are hard for exponentials: unlikely and certain targets, empty tiles, NaN, a common
offset; in every operand dtype.

The operands are zeros and the logits come from the fp32 bias, so a single active row shows its
logit gradient, exact factor included, as the gradient of the bias: a sum of two 16-bit parts, good
to 17 (bf16) and 21 (fp16) binary digits.
"""

from __future__ import annotations

import pytest
import torch

from gft_kernels import Head, linear_logprob, linear_policy_loss, reinforce, sft
from gft_kernels.engines.triton.arguments import SCORES_ONLY
from gft_kernels.engines.triton.configs import INTERPRETED, OFFSET_LIMIT, per_tile
from gft_kernels.engines.triton.finalise import finalise
from gft_kernels.engines.triton.formulas import SFT
from gft_kernels.engines.triton.forward import head_forward, head_reference
from gft_kernels.engines.triton.rescale import rescale
from gft_kernels.head import Operands

from ...helpers.problems import fused, make_problem, naive

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Of the target's entry: in fp32 a logit 40 nats from the offset is itself rounded to 2^-19, see
# above for the others.
DIGITS = {torch.float32: 2.0**-18, torch.bfloat16: 2.0**-15, torch.float16: 2.0**-17}
# Of any other: rounded once in its dtype (2^-8, 2^-11) and moved by as much again with the factor
# that makes the target exact.
ROUNDING = {torch.float32: 2.0**-18, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
VOCABULARY = 77  # three tiles of the interpreter's 32 columns, the last of 13
# log p of a target against one column that has nearly all the mass: below each dtype's reach,
# either side of OFFSET_LIMIT, near 1.
UNLIKELY = (-1e4, -100.0, -45.0, -40.5, -39.5, -20.0, -5.0)


def logits_of(own: float, at: int, peak: int = 40, others: float = -3.0) -> torch.Tensor:
    """Logits with `own` at column `at`, 0 at `peak`, and scattered values about `others` elsewhere."""
    logits = others + torch.rand(VOCABULARY)
    logits[peak] = 0.0
    logits[at] = own
    return logits


def gradient_row(
    logits: torch.Tensor,
    target: int,
    dtype: torch.dtype,
    objective=None,
    upstream: float = 1.0,
    backend="triton",
    **inputs,
):
    """(result, d loss / d logits [V]) of one row with these logits, its token weight 1."""
    bias = logits.clone().requires_grad_()
    hidden, weight = torch.zeros(1, 3, dtype=dtype, requires_grad=True), torch.zeros(len(logits), 3, dtype=dtype)
    out = linear_policy_loss(
        hidden,
        weight,
        torch.tensor([target]),
        objective=objective or sft(),
        head=Head(bias=bias),
        backend=backend,
        **inputs,
    )
    out.loss.backward(torch.tensor(upstream))
    return out, bias.grad


def exact_row(logits: torch.Tensor, target: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(log p, -d log p / d logits) in fp64; 1 - p as a sum of the others."""
    log_p = logits.double().log_softmax(-1)
    want = log_p.exp()
    others = torch.arange(len(logits)) != target
    want[target] = -want[others].sum()
    return log_p[target], want


def assert_row(
    dtype: torch.dtype,
    got: torch.Tensor,
    want: torch.Tensor,
    target: int,
    coefficient: float = 1.0,
    digits: float | None = None,
) -> None:
    """The target's entry in full precision, the others within their roundings; fp16 holds 256 times
    a gradient, in steps of 2^-24.
    """
    assert abs(got[target] / want[target] - 1) <= (digits or DIGITS[dtype])
    others = torch.arange(len(want)) != target
    smallest = abs(coefficient) * 2.0**-32 * per_tile(dtype)
    torch.testing.assert_close(got.double()[others], want[others], rtol=ROUNDING[dtype], atol=smallest)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(  # in another tile than the peak; in the peak's own and in the ragged one
    ("log_p", "at"), [*((x, 3) for x in UNLIKELY), *((x, at) for x in (-5.0, -45.0) for at in (41, 76))]
)
def test_gradient_of_an_unlikely_target_is_right(log_p, at, dtype):
    logits = logits_of(log_p, at)
    out, got = gradient_row(logits, at, dtype)
    want_lp, want = exact_row(logits, at)
    torch.testing.assert_close(out.logprobs[0].double(), want_lp, rtol=1e-6, atol=0)
    assert_row(dtype, got, want, at)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("p", [0.5, 0.9, 0.99, 0.999, 0.99999])
def test_gradient_of_a_confident_target_is_right(p, dtype):
    logits = -torch.rand(VOCABULARY)
    others = logits.exp().sum() - logits[40].exp()
    logits[40] = torch.log(others * p / (1 - p))
    out, got = gradient_row(logits, 40, dtype)
    want_lp, want = exact_row(logits, 40)
    assert abs(want_lp.exp() - p) < 0.01 * (1 - p)
    torch.testing.assert_close(out.logprobs[0].double(), want_lp, rtol=1e-5, atol=0)
    assert_row(dtype, got, want, 40)


@pytest.mark.parametrize("log_p", UNLIKELY)
def test_fp16_gradients_of_one_chunk_differ_by_any_factor(log_p):
    # The largest token weight sets the range that fp16 gradients are held in: a weight of 2^-10
    # must keep its digits beside it.
    logits, weights = logits_of(log_p, 3), torch.tensor([1.0, 2.0**-10])
    bias = logits.clone().requires_grad_()
    hidden = torch.zeros(2, 3, dtype=torch.float16, requires_grad=True)
    linear_policy_loss(
        hidden,
        torch.zeros(VOCABULARY, 3, dtype=torch.float16),
        torch.tensor([3, 40]),
        objective=sft(),
        token_weights=weights,
        head=Head(bias=bias),
        backend="triton",
    ).loss.backward()
    want = exact_row(logits, 3)[1] + 2.0**-10 * exact_row(logits, 40)[1]
    torch.testing.assert_close(bias.grad.double(), want, rtol=ROUNDING[torch.float16], atol=2.0**-23)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("log_p", [-5.0, -45.0, -1e4])
def test_linear_logprob_gradients_of_an_unlikely_target_are_right(log_p, dtype):
    logits = logits_of(log_p, 3)
    bias = logits.clone().requires_grad_()
    hidden, weight = torch.zeros(1, 3, dtype=dtype), torch.zeros(VOCABULARY, 3, dtype=dtype)
    got = linear_logprob(hidden, weight, torch.tensor([3]), head=Head(bias=bias), backend="triton")
    of_logprob, of_entropy = (torch.autograd.grad(x.sum(), bias, retain_graph=True)[0].double() for x in got)
    want, minus_gradient = exact_row(logits, 3)
    log_probs = logits.double().log_softmax(-1)
    entropy = -(log_probs.exp() * log_probs).sum()
    torch.testing.assert_close((got[0][0].double(), got[1][0].double()), (want, entropy), rtol=2e-6, atol=0)
    assert_row(
        dtype, of_logprob, -minus_gradient, 3, digits=ROUNDING[dtype]
    )  # nothing makes the target's entry exact here
    exact = -log_probs.exp() * (log_probs + entropy)
    torch.testing.assert_close(of_entropy, exact, rtol=ROUNDING[dtype], atol=4e-6 * float(exact.abs().max()))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("at", [3, 35])  # 35: the only column of its tile that is not banned
def test_banned_tiles_are_as_if_absent(at, dtype):
    logits = logits_of(-2.0, at, peak=70)
    banned = (torch.arange(VOCABULARY) // 32 == 1) & (torch.arange(VOCABULARY) != at)
    logits[banned] = -torch.inf
    out, got = gradient_row(logits, at, dtype)
    want_lp, want = exact_row(logits, at)
    assert torch.equal(got[banned], torch.zeros(int(banned.sum())))
    torch.testing.assert_close(out.logprobs[0].double(), want_lp, rtol=1e-6, atol=0)
    assert_row(dtype, got, want, at)
    kept = logits[~banned].double().log_softmax(-1)
    torch.testing.assert_close(out.entropy[0].double(), -(kept.exp() * kept).sum(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_only_token_left_has_no_gradient(dtype):
    logits = torch.full((VOCABULARY,), -torch.inf)
    logits[40] = 2.0
    out, got = gradient_row(logits, 40, dtype)
    assert out.logprobs[0] == out.entropy[0] == 0
    assert torch.equal(got, torch.zeros(VOCABULARY))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("offset", [-8192.0, 8192.0])
def test_common_offset_costs_no_more_than_the_logits_own_rounding(offset, dtype):
    # Multiples of 1/16: exact in fp32 with 8192 on top, where numbers lie 1/1024 apart.
    logits = (logits_of(-2.0, 3) * 16).round() / 16
    plain, moved = (gradient_row(logits + x, 3, dtype) for x in (0.0, offset))
    torch.testing.assert_close(moved[0].logprobs, plain[0].logprobs, rtol=0, atol=2.0**-11)
    torch.testing.assert_close(moved[1], plain[1], rtol=2.0**-10 + ROUNDING[dtype], atol=1e-9)
    if not per_tile(dtype):
        assert torch.equal(moved[1], plain[1])


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # inf - inf in the bad row
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_bad_row_leaves_every_bit_of_the_others(value, dtype):
    # Rows of the same block, one of them with tiles to rescale (log p of -200 and less).
    problem = make_problem(20, 5, VOCABULARY, dtype=dtype, masked=0)
    hidden = problem.hidden.clone()
    hidden[4] *= 80
    hidden[4] *= torch.sign(hidden[4].double() @ problem.weight[problem.targets[4]].double()).to(dtype) * -1
    problem = problem._replace(hidden=hidden)
    bad = problem._replace(hidden=hidden.index_fill(0, torch.tensor(7), value))
    want, got = (fused(x, objective=sft(), backend="triton") for x in (problem, bad))
    others = torch.arange(20) != 7
    assert want.logprobs[4] < -OFFSET_LIMIT
    assert got.logprobs[7].isnan()
    assert torch.equal(got.logprobs[others], want.logprobs[others])
    assert torch.equal(got.hidden[others], want.hidden[others])
    assert got.loss.isnan()


def marked_tiles(log_p: float, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(rescaled exponentials, rows.target, targets) of two blocks of rows, every exponential a
    marker before `rescale`.
    """
    problem = make_problem(80, 5, VOCABULARY, dtype=dtype, masked=0)
    targets, head = problem.targets, Head(bias=problem.bias.index_fill(0, problem.targets[2], log_p))
    operands = Operands(problem.hidden, problem.weight, head.bias)
    reference = head_reference(operands, targets, head)
    partials = head_forward(operands, targets, reference, None, head, INTERPRETED)
    arguments = SCORES_ONLY | {"KIND": SFT.value, "weights_ptr": torch.ones(80)}
    rows = finalise(partials, reference, dtype, head, arguments | {"unit_ptr": torch.ones(())})
    exps = torch.full((80, VOCABULARY), 0x7F81, dtype=torch.int16).view(
        dtype
    )  # a NaN; a value that is rounded comes out as 0x7FC0
    rescale(exps, partials, rows, targets, INTERPRETED)
    return exps, rows.target, targets


def test_rescale_leaves_ordinary_tiles_alone():
    exps, own, targets = marked_tiles(0.0, torch.bfloat16)
    at = (torch.arange(80), targets)
    assert torch.equal(exps[at].float(), own)
    exps[at] = torch.full((80,), 0x7F81, dtype=torch.int16).view(torch.bfloat16)
    assert (exps.view(torch.int16) == 0x7F81).all()


def test_rescale_rewrites_the_tiles_of_an_unlikely_target():
    exps, own, targets = marked_tiles(-200.0, torch.bfloat16)
    assert torch.equal(exps[torch.arange(80), targets].float(), own)
    untouched = (exps.view(torch.int16) == 0x7F81).sum(1)
    assert untouched[2] < VOCABULARY - 64  # the marker survives only where the row's maximum is not
    assert (untouched[64:] >= VOCABULARY - 1).all()  # the other block


@pytest.mark.parametrize("advantage", [1e3, -1e3])
def test_fp16_takes_advantages_that_are_not_normalised(advantage):
    logits = logits_of(-5.0, 3)
    _, got = gradient_row(logits, 3, torch.float16, objective=reinforce(), advantages=torch.tensor([advantage]))
    want = exact_row(logits, 3)[1] * advantage
    assert_row(torch.float16, got, want, 3, advantage)


def test_gradients_of_few_columns_agree_with_naive_in_every_tile():
    """Targets in every column, so each tile holds some and misses others."""
    problem = make_problem(VOCABULARY, 5, VOCABULARY, masked=0)._replace(targets=torch.arange(VOCABULARY))
    got, want = fused(problem, objective=sft(), backend="triton"), naive(problem, lambda lp, a, old, ref: -lp)
    torch.testing.assert_close(tuple(got[2:]), tuple(want[2:]), rtol=1e-9, atol=1e-12)
