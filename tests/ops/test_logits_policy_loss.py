"""`logits_policy_loss`: the fused losses from logits that exist, in place or not."""

from __future__ import annotations

import pytest
import torch

from gft_kernels import Backend, GroupRewards, Head, dft, gft, grpo, kl, logits_policy_loss, reinforce, sft

from ..helpers.cases import BACKENDS
from ..helpers.problems import RMS_LIMIT, assert_accurate, make_problem, naive_logprobs, rms, settings_of, token_mean

FUSED = [name for name in BACKENDS if name != "eager"]
# 50 rows over three chunks of 16 and a ragged one; 300 columns are blocks of 64 and a ragged one.
PROBLEM = make_problem(50, 12, 300)
OLD, REF = PROBLEM.old_logprobs, PROBLEM.ref_logprobs
OBJECTIVES = {
    "sft": sft(),
    "dft": dft(),
    "gft": gft(0.3),
    "grpo+kl": grpo(clip_high=0.28) + kl(0.1),
    "a function": lambda logprobs, *, old_logprobs, **_: -(logprobs - old_logprobs).exp().clamp(max=1.2),
}


def logits_of(problem=PROBLEM, dtype=torch.float64):
    return (problem.hidden @ problem.weight.T).to(dtype)


def run(logits, objective, problem=PROBLEM, *, inplace=False, head=None, backend="auto", **options):
    """(result, gradient of the raw logits).

    The logits that the op sees are computed from a leaf, as a model's are.
    """
    leaf = logits.clone().requires_grad_()
    seen = leaf * 1
    options = {
        "advantages": problem.advantages,
        "old_logprobs": OLD,
        "ref_logprobs": REF,
        "token_weights": token_mean(problem.targets),
    } | options
    options |= settings_of(backend, chunk_rows=16, **(head or {}))
    out = logits_policy_loss(seen, problem.targets, objective=objective, inplace=inplace, **options)
    out.loss.backward()
    return out, leaf.grad


@pytest.mark.parametrize("inplace", [False, True], ids=["copy", "inplace"])
@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_logits_policy_loss_matches_eager_in_fp64(name, backend, inplace):
    options = {"head": {"temperature": 0.7, "skip_rows": False}}
    want, want_grad = run(logits_of(), OBJECTIVES[name], backend="eager", **options)
    got, grad = run(logits_of(), OBJECTIVES[name], backend=backend, inplace=inplace, **options)
    torch.testing.assert_close(got.loss, want.loss, rtol=1e-10, atol=0)
    for x, y in zip((*got[1:4], grad), (*want[1:4], want_grad), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-13)
    assert grad.abs().max() > 1e-3


@pytest.mark.parametrize("backend", BACKENDS)
def test_logits_policy_loss_is_the_formula(backend):
    logits = logits_of().requires_grad_()
    lp, _ = naive_logprobs(logits, torch.eye(300).double(), PROBLEM.targets)
    p = lp.detach().exp()
    want = -(PROBLEM.advantages * torch.where(p < 0.3, p, 1.0) * lp * token_mean(PROBLEM.targets)).sum()
    want.backward()
    got, grad = run(logits_of(), gft(0.3), backend=backend)
    torch.testing.assert_close(got.loss, want, rtol=1e-10, atol=0)
    torch.testing.assert_close(grad, logits.grad, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_logits_policy_loss_gradient_is_rounded_once(dtype, backend):
    logits = logits_of(dtype=dtype)
    _, want = run(logits.double(), gft(0.3), backend="eager")
    _, grad = run(logits, gft(0.3), backend=backend)
    assert grad.dtype == dtype
    assert_accurate(grad, want)


def test_logits_policy_loss_keeps_tiny_fp16_gradients():
    # 1e-6 a token is below fp16's range. The loss scale brings it back, so it must not be rounded
    # before that.
    logits, weights = logits_of(dtype=torch.float16), token_mean(PROBLEM.targets) * 1e-5
    leaf = logits.double().requires_grad_()
    options = {"objective": reinforce(), "token_weights": weights}
    (
        logits_policy_loss(leaf * 1, PROBLEM.targets, PROBLEM.advantages, backend="eager", **options).loss * 2.0**16
    ).backward()
    for backend in FUSED:
        half = logits.clone().requires_grad_()
        (
            logits_policy_loss(half * 1, PROBLEM.targets, PROBLEM.advantages, backend=backend, **options).loss * 2.0**16
        ).backward()
        assert rms(half.grad - leaf.grad) <= 2 * RMS_LIMIT[torch.float16] * rms(leaf.grad)


@pytest.mark.parametrize("backend", FUSED)
def test_logits_policy_loss_normalises_rewards(backend):
    rewards = GroupRewards(
        torch.tensor([0.0, 1.0, 0.5, 0.35, 0.35]).double(), torch.tensor([0, 0, 0, 1, 1]), PROBLEM.sequence_ids
    )
    _, want = run(
        logits_of(),
        gft(0.3),
        advantages=rewards.per_token(PROBLEM.targets >= 0, GroupRewards.per_sequence),
        backend="eager",
    )
    got, grad = run(logits_of(), gft(0.3), advantages=rewards, backend=backend)
    torch.testing.assert_close(grad, want, rtol=1e-9, atol=1e-13)
    skipped = (PROBLEM.targets >= 0) & (PROBLEM.sequence_ids >= 3)  # the group without spread
    assert skipped.any()
    assert got.logprobs[skipped].isnan().all()
    assert (grad[skipped] == 0).all()


@pytest.mark.parametrize("backend", FUSED)
def test_logits_policy_loss_in_place_zeroes_unseen_rows(backend):
    advantages = PROBLEM.advantages.clone()
    advantages[:20] = 0
    _, grad = run(logits_of(), gft(0.3), advantages=advantages, backend=backend, inplace=True)
    assert (grad[:20] == 0).all()
    assert (grad[PROBLEM.targets < 0] == 0).all()
    assert (grad[20:].abs().sum(1) > 0).any()


@pytest.mark.parametrize("backend", FUSED)
def test_logits_policy_loss_in_place_allocates_no_second_matrix(backend):
    leaf = logits_of(dtype=torch.float32).requires_grad_()
    seen, handed_on = leaf * 1, []
    seen.register_hook(lambda grad: handed_on.append(grad.data_ptr()))
    logits_policy_loss(
        seen,
        PROBLEM.targets,
        PROBLEM.advantages,
        backend=Backend(backend, chunk_rows=4),
        inplace=True,
    ).loss.backward()
    assert handed_on == [seen.data_ptr()]


@pytest.mark.parametrize("backend", FUSED)
def test_logits_policy_loss_in_place_is_noticed_by_autograd(backend):
    leaf = logits_of(dtype=torch.float32).requires_grad_()
    seen = (leaf * 1).exp()  # exp needs its own result in the backward
    loss = logits_policy_loss(seen, PROBLEM.targets, PROBLEM.advantages, backend=backend, inplace=True).loss
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_logits_policy_loss_of_masked_and_of_empty_batches_is_zero(backend):
    for targets in (torch.full((4,), -100), torch.empty(0, dtype=torch.long)):
        logits = torch.randn(len(targets), 7, requires_grad=True)
        out = logits_policy_loss(logits, targets, torch.ones(len(targets)), backend=backend)
        out.loss.backward()
        assert out.loss == 0
        assert (logits.grad == 0).all()


@pytest.mark.parametrize("backend", FUSED)
def test_logits_policy_loss_survives_impossible_and_certain_targets(backend):
    logits = torch.zeros(4, 70)
    logits[0, 3] = -torch.inf  # p = 0
    logits[1, 3] = 1e4  # p = 1
    logits[2] += 1e4  # a common offset
    logits[3, 4:] = -torch.inf  # a block without mass
    leaf = logits.clone().requires_grad_()
    out = logits_policy_loss(
        leaf * 1,
        torch.full((4,), 3),
        torch.ones(4),
        objective=reinforce(),
        token_weights=torch.ones(4),
        backend=backend,
    )
    out.loss.backward()
    torch.testing.assert_close(
        out.logprobs, torch.tensor([-torch.inf, 0.0, -torch.log(torch.tensor(70.0)), -torch.log(torch.tensor(4.0))])
    )
    assert not leaf.grad.isnan().any()
    torch.testing.assert_close(leaf.grad.sum(1), torch.tensor([0.0, 0, 0, 0]), rtol=0, atol=1e-6)
    assert leaf.grad[0, 3] == -1
    torch.testing.assert_close(leaf.grad[3, 3], torch.tensor(-0.75))


@pytest.mark.parametrize("backend", FUSED)
def test_logits_policy_loss_one_row_of_nan_leaves_the_others_alone(backend):
    logits = logits_of(dtype=torch.float32)
    _, clean = run(logits, sft(), backend=backend)
    row = int((PROBLEM.targets >= 0).nonzero()[5])
    logits[row] = torch.nan
    _, grad = run(logits, sft(), backend=backend)
    rest = torch.arange(50) != row
    assert torch.equal(grad[rest], clean[rest])
    assert grad[row].isnan().all()


REFUSED = {
    "a leaf in place": (
        lambda z, t: logits_policy_loss(z, t, torch.ones(3), inplace=True),
        "must be computed from something",
    ),
    "strides in place": (
        lambda z, t: logits_policy_loss((z * 1).T.contiguous().T, t, torch.ones(3), inplace=True),
        "adjacent columns",
    ),
    "a leaf's view in place": (
        lambda z, t: logits_policy_loss(z[None].flatten(0, 1), t, torch.ones(3), inplace=True),
        "computed from something",
    ),
    "one row thrice in place": (
        lambda z, t: logits_policy_loss((z[:1] * 1).expand(3, 7), t, torch.ones(3), inplace=True),
        "do not overlap",
    ),
    "eager in place": (
        lambda z, t: logits_policy_loss(z * 1, t, torch.ones(3), inplace=True, backend="eager"),
        "needs a fused backend",
    ),
    "softcap": (
        lambda z, t: logits_policy_loss(z, t, torch.ones(3), head=Head(softcap=30.0)),
        "Head.softcap = 30.0 but logits are given",
    ),
    "bias": (lambda z, t: logits_policy_loss(z, t, torch.ones(3), head=Head(bias=torch.zeros(7))), "Head.bias"),
    "three dimensions": (lambda z, t: logits_policy_loss(z[None], t, torch.ones(3)), r"must be \[N, V\]"),
    "target outside": (lambda z, t: logits_policy_loss(z, t + 6, torch.ones(3)), r"targets\[1\] = 7 is outside"),
    "no advantages": (lambda z, t: logits_policy_loss(z, t), "needs advantages"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_logits_policy_loss_refuses(name):
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        call(torch.randn(3, 7, requires_grad=True), torch.tensor([0, 1, 0]))


def test_logits_policy_loss_second_backward_is_refused():
    leaf = torch.randn(3, 7, requires_grad=True)
    loss = logits_policy_loss(leaf * 1, torch.tensor([0, 1, 2]), torch.ones(3)).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="call the op again"):
        loss.backward()


@pytest.mark.parametrize("backend", FUSED)
def test_logits_policy_loss_fp16_holds_coefficients_far_over_one(backend):
    advantages = PROBLEM.advantages.sign() * 3000
    _, want = run(logits_of().half().double(), reinforce(), advantages=advantages, backend="eager")
    _, grad = run(logits_of(dtype=torch.float16), reinforce(), advantages=advantages, backend=backend)
    assert_accurate(grad, want)
