"""What must hold exactly, or whatever the numbers: bits, masks, confident rows, who else is in the
batch.
"""

from __future__ import annotations

import contextlib

import pytest
import torch

from gft_kernels import Backend, gft, linear_logprob, linear_policy_loss, reinforce, sft
from gft_kernels.engines import accumulate

from .device import DEVICE, DRY, LIMIT, MARKS, Problem, make_problem, relative, sized

pytestmark = MARKS

BF16 = torch.bfloat16
SHAPE = (sized(500, 24), sized(256, 24), sized(32001, 97))


@pytest.fixture(scope="module")
def problem() -> Problem:
    return make_problem(*SHAPE, BF16)


def loss_of(p: Problem, **options) -> torch.Tensor:
    options = {"objective": gft(0.7), "token_weights": p.weights, "backend": "triton"} | options
    return linear_policy_loss(p.hidden, p.weight, p.targets, options.pop("advantages", p.advantages), **options).loss


def outputs(p: Problem, **options) -> list[torch.Tensor]:
    """Loss and gradients of the fused loss, and of the log-prob op."""
    one, two = p.leaves(), p.leaves()
    loss = loss_of(one, **options)
    loss.backward()
    out = linear_logprob(two.hidden, two.weight, two.targets, backend="triton")
    (p.weights * (out.logprobs - 0.3 * out.entropy)).sum().backward()
    return [
        loss.detach(),
        one.hidden.grad,
        one.weight.grad,
        out.logprobs.detach(),
        out.entropy.detach(),
        two.hidden.grad,
        two.weight.grad,
    ]


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_ten_runs_have_the_same_bits(problem):
    options = {"advantages": problem.groups(), "backend": Backend("triton", chunk_rows=sized(128, 16))}
    first = outputs(problem, **options)
    assert all(same(first, outputs(problem, **options)) for _ in range(sized(9, 2)))


def test_a_stream_of_its_own_gives_the_same_bits(problem):
    first = outputs(problem)
    if DRY:
        stream = contextlib.nullcontext()
    else:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        stream = torch.cuda.stream(side)
    with stream:
        second = outputs(problem)
    if not DRY:
        torch.cuda.current_stream().wait_stream(side)
    assert same(first, second)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices")
def test_the_second_device_gives_the_same_bits(problem):
    moved = Problem(*(x.to("cuda:1") for x in problem))
    assert same(outputs(problem), [x.to("cuda:0") for x in outputs(moved)])


def test_autocast_changes_nothing(problem):
    first = outputs(problem)
    with torch.autocast(DEVICE, dtype=torch.float16 if not DRY else BF16):
        assert same(first, outputs(problem))


def test_strided_inputs_give_the_same_bits(problem):
    hidden = problem.hidden.repeat_interleave(2, 1)[:, ::2]
    weight = torch.cat((problem.weight, problem.weight), 1)[:, : problem.weight.shape[1]]
    assert not hidden.is_contiguous()
    assert not weight.is_contiguous()
    found = [x.detach().requires_grad_() for x in (hidden, weight)]
    got = loss_of(problem._replace(hidden=found[0], weight=found[1]))
    got.backward()
    want = outputs(problem)
    assert same([got.detach(), *(x.grad for x in found)], want[:3])


def test_nan_row_leaves_the_others_bitwise_unchanged(problem):
    bad = int((problem.targets != -100).nonzero()[3])
    broken = problem._replace(hidden=problem.hidden.index_fill(0, torch.tensor([bad], device=DEVICE), torch.nan))
    clean, dirty = outputs(problem), outputs(broken)
    others = torch.arange(len(problem.targets), device=DEVICE) != bad
    for i in (1, 3, 4, 5):  # gradients of hidden, log-probs, entropy
        assert torch.equal(clean[i][others], dirty[i][others])
        assert not dirty[i][bad].isfinite().any()
    assert not dirty[0].isfinite()


def test_all_masked_batch_has_loss_and_gradients_of_zero(problem):
    masked = problem._replace(targets=torch.full_like(problem.targets, -100)).leaves()
    loss = loss_of(masked)
    loss.backward()
    assert loss.item() == 0
    assert not masked.hidden.grad.any()
    assert not masked.weight.grad.any()


@pytest.mark.parametrize("dtype", [BF16, torch.float16, torch.float32])
def test_confident_rows_keep_the_digits_of_one_minus_p(dtype):
    p = torch.tensor([0.5, 0.9, 0.99, 0.999, 0.99999], dtype=torch.float64, device=DEVICE)
    vocabulary, rows = sized(32001, 97), len(p)
    at = torch.arange(rows, device=DEVICE)
    weight = torch.zeros(vocabulary, 64, dtype=dtype, device=DEVICE)
    weight[at * 7, at] = (p / (1 - p) * (vocabulary - 1)).log().to(dtype)  # the only logit of row i that is not 0
    hidden = torch.eye(rows, 64, dtype=dtype, device=DEVICE).requires_grad_()
    logits = weight[at * 7, at].double()
    rest = (vocabulary - 1) / ((vocabulary - 1) + logits.exp())  # 1 - p of the quantised logits
    weight.requires_grad_()
    loss = linear_policy_loss(
        hidden, weight, at * 7, objective=sft(), token_weights=torch.ones(rows, device=DEVICE), backend="triton"
    ).loss
    loss.backward()
    found = -weight.grad[at * 7, at].double()
    tolerance = {BF16: 8e-3, torch.float16: 1e-3, torch.float32: 2e-5}[dtype]
    torch.testing.assert_close(found, rest, rtol=tolerance, atol=6e-8 if dtype == torch.float16 else 0)


def test_second_backward_is_right_and_keeps_the_first(problem):
    leaves = problem.leaves()
    loss = loss_of(leaves)
    pair = (leaves.hidden, leaves.weight)
    first = torch.autograd.grad(3 * loss, pair, retain_graph=True)
    kept = [x.clone() for x in first]
    second = torch.autograd.grad(-0.5 * loss, pair)
    for a, before, b in zip(first, kept, second, strict=True):
        assert torch.equal(a, before)
        assert relative(-6 * b.double(), a) <= 2 * LIMIT[BF16]


def test_the_sign_of_the_advantages_is_the_sign_of_the_gradient(problem):
    one, other = problem.leaves(), problem.leaves()
    loss_of(one, objective=reinforce()).backward()
    loss_of(other, objective=reinforce(), advantages=-problem.advantages).backward()
    assert torch.equal(one.hidden.grad, -other.hidden.grad)
    assert torch.equal(one.weight.grad, -other.weight.grad)


@pytest.mark.parametrize("dtype", [BF16, torch.float16])
@pytest.mark.parametrize("in_place", [True, False])
def test_add_matmul_adds_in_fp32_on_either_path(dtype, in_place, monkeypatch):
    if in_place and (DRY or not accumulate._adds_in_place(dtype, torch.device("cuda", torch.cuda.current_device()))):
        pytest.skip(f"torch {torch.__version__} adds no 16-bit product to an fp32 matrix in one GEMM here")
    monkeypatch.setattr(accumulate, "_adds_in_place", lambda *_: in_place)
    rows, inner, columns = sized((20001, 512, 64), (301, 40, 16))
    a, b = (torch.randn(shape, device=DEVICE).to(dtype) for shape in ((inner, rows), (inner, columns)))
    total = 100 * torch.randn(rows, columns, device=DEVICE)
    want = total.double() + a.T.double() @ b.double()
    found = accumulate.add_matmul(total, a.T, b)
    assert found.data_ptr() == total.data_ptr()
    assert relative(found, want) <= 1e-5  # a sum rounded to 16 bits would be off by 1e-4 and more
    assert relative(accumulate.matmul(a.T, b), a.T.double() @ b.double()) <= 2e-5


def test_fp16_gradients_survive_loss_scaling():
    small = make_problem(*SHAPE, torch.float16)
    plain, scaled = small.leaves(), small.leaves()
    loss_of(plain, token_weights=small.weights / 512).backward()
    (loss_of(scaled, token_weights=small.weights / 512) * 512).backward()
    exact = small.double().leaves()
    (loss_of(exact, backend="eager")).backward()
    for name in ("hidden", "weight"):
        want = getattr(exact, name).grad
        assert relative(getattr(scaled, name).grad, want) <= LIMIT[torch.float16]
        assert (
            relative(512 * getattr(plain, name).grad.double(), want) <= 0.05
        )  # below fp16's normal range without scaling
