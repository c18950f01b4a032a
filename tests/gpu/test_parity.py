"""The kernels on a device against fp64 eager logits of the same quantised numbers."""

from __future__ import annotations

import pytest
import torch

from gft_kernels import cispo, dft, gft, grpo, kl, linear_logprob, linear_policy_loss, reinforce, sft

from ..helpers.problems import settings_of
from .device import LOGPROB_LIMIT, MARKS, TAU, Problem, assert_gradients, make_problem, sized

pytestmark = MARKS

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
VOCABULARIES = (32000, 50257, 128256, 151936, 262144)
ONE_OFF = (32001, 50256, 128255, 151937, 262143)
D = sized(256, 24)
TRANSFORMS = {"scale": 0.8, "softcap": 6.0, "temperature": 0.9}


def settings(problem: Problem, backend: str, head: dict, run: dict) -> dict:
    head = dict(head)
    return settings_of(backend, problem.bias if head.pop("bias", False) else None, **head, **run)


def assert_loss(
    problem: Problem,
    *,
    backend: str = "triton",
    grouped: bool = False,
    head: dict | None = None,
    run: dict | None = None,
    **options,
):
    """Loss, log-probs, entropy and gradients of `linear_policy_loss`; `head` for both sides, `run`
    for the kernels alone.
    """
    sides = []
    for side, name, extra in ((problem, backend, run or {}), (problem.double(), "eager", {})):
        leaves = side.leaves()
        given = {k: getattr(leaves, v) for k, v in options.items() if k in ("old_logprobs", "ref_logprobs")}
        result = linear_policy_loss(
            leaves.hidden,
            leaves.weight,
            leaves.targets,
            leaves.groups() if grouped else leaves.advantages,
            token_weights=leaves.weights,
            objective=options["objective"],
            **settings(leaves, name, head or {}, extra),
            **given,
        )
        result.loss.backward()
        sides.append((leaves, result))
    (found, got), (expected, want) = sides
    seen = got.logprobs.isfinite()
    assert torch.equal(seen, want.logprobs.isfinite())
    for name in ("logprobs", "entropy"):
        assert (getattr(got, name) - getattr(want, name))[seen].abs().max() <= LOGPROB_LIMIT
    assert abs(got.loss.item() - want.loss.item()) <= 1e-4 * (problem.weights * want.logprobs.abs())[seen].sum().item()
    assert_gradients(
        found, expected, ("hidden", "weight", "bias") if head and head.get("bias") else ("hidden", "weight")
    )


def assert_logprob(problem: Problem, head: dict | None = None, **run):
    """Log-probs, entropy and the gradients of an upstream gradient that is random, negative and for
    a third of the rows 0.
    """
    sides = []
    for side, backend, extra in ((problem, "triton", run), (problem.double(), "eager", {})):
        leaves = side.leaves()
        out = linear_logprob(
            leaves.hidden, leaves.weight, leaves.targets, **settings(leaves, backend, head or {}, extra)
        )
        slope = leaves.advantages.masked_fill(
            torch.arange(len(leaves.targets), device=leaves.targets.device) % 3 == 2, 0
        )
        (slope * (out.logprobs - 0.3 * out.entropy)).sum().backward()
        sides.append((leaves, out))
    (found, got), (expected, want) = sides
    assert (got.logprobs - want.logprobs).abs().max() <= LOGPROB_LIMIT
    assert (got.entropy - want.entropy).abs().max() <= LOGPROB_LIMIT
    assert_gradients(
        found, expected, ("hidden", "weight", "bias") if head and head.get("bias") else ("hidden", "weight")
    )


@pytest.mark.parametrize("vocabulary", [v for pair in zip(VOCABULARIES, ONE_OFF, strict=True) for v in pair])
def test_loss_at_real_vocabularies(vocabulary):
    problem = make_problem(sized(1000, 24), D, sized(vocabulary, 40 + vocabulary % 64), BF16)
    assert_loss(problem, grouped=True, objective=gft(TAU))


@pytest.mark.parametrize(
    ("dtype", "rows"),
    [*((BF16, n) for n in (1, 2, 15, 16, 17, 1000)), (FP16, 17), (FP16, 1000), (FP32, 2), (FP32, 17), (FP32, 1000)],
)
def test_loss_of_any_number_of_rows(dtype, rows):
    assert_loss(make_problem(min(rows, sized(rows, 33)), D, sized(32001, 97), dtype, masked=False), objective=gft(TAU))


@pytest.mark.parametrize(
    "objective",
    [sft(), dft(), reinforce(), grpo(0.2, 0.28, dual_clip=3.0), cispo(), grpo(0.2, 0.2) + kl(0.05)],
    ids=["sft", "dft", "reinforce", "grpo", "cispo", "grpo+kl"],
)
def test_loss_of_every_objective(objective):
    problem = make_problem(sized(500, 24), D, sized(32001, 97), BF16)
    assert_loss(problem, objective=objective, old_logprobs="old", ref_logprobs="ref")


def test_loss_of_a_users_objective():
    def expected_reward(logprobs, *, advantages, **_):
        return -advantages * logprobs.exp()

    assert_loss(make_problem(sized(500, 24), D, sized(32001, 97), BF16), objective=expected_reward)


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
def test_loss_through_every_transform(dtype):
    problem = make_problem(sized(500, 24), D, sized(50257, 97), dtype)
    assert_loss(problem, objective=reinforce(), head={"bias": True, **TRANSFORMS})


def test_loss_in_ragged_chunks_and_an_odd_hidden_size():
    problem = make_problem(sized(1000, 40), sized(200, 20), sized(32001, 97), BF16)
    assert_loss(problem, objective=gft(TAU), run={"chunk_rows": sized(256, 16)})


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
def test_logprob_and_entropy(dtype):
    assert_logprob(make_problem(sized(1000, 24), D, sized(50257, 97), dtype))


def test_logprob_and_entropy_through_every_transform_in_ragged_chunks():
    problem = make_problem(sized(500, 40), D, sized(32000, 96), BF16)
    assert_logprob(problem, {"bias": True, **TRANSFORMS}, chunk_rows=sized(128, 16))


@pytest.mark.parametrize("dtype", [torch.float64, BF16, FP16])
def test_chunked_on_the_device(dtype):
    problem = make_problem(sized(1000, 24), sized(96, 20), sized(50257, 97), dtype)
    problem = problem.double() if dtype == torch.float64 else problem
    assert_loss(problem, backend="chunked", grouped=True, objective=gft(TAU))


def test_mixed_dtypes():
    problem = make_problem(sized(300, 24), D, sized(32001, 97), BF16)
    assert_loss(problem._replace(weight=problem.weight.float()), objective=reinforce())
