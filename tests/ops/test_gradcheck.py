"""Gradients against finite differences in fp64.

A detached coefficient (gft, dft, cispo, chord) is no derivative of the loss's value, so those
objectives are checked in two steps: finite differences prove the gradient of sum_t w_t c_t log p_t
with constant c, and theirs must be that gradient.

The interpreter takes milliseconds a launch, so Triton's Jacobians are checked along one random
direction on either side.
"""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck

from gft_kernels import linear_logprob, linear_policy_loss, reinforce

from ..helpers.formulas import COEFFICIENTS, OBJECTIVES
from ..helpers.problems import fused, make_problem, naive_logprobs, settings_of
from .test_parity import BACKENDS, TRANSFORMS, inputs_of

DETACHED = ("gft", "gft-launcher", "dft", "cispo", "chord")
SMALL = make_problem(7, 4, 5, seed=1)  # two rows a chunk: four chunks, the last of one row
WEIGHTS = torch.linspace(0.2, 1.4, 7).double()


def leaves() -> tuple[torch.Tensor, ...]:
    return tuple(x.clone().requires_grad_() for x in SMALL[:3])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_linear_logprob_gradcheck(transform, backend):
    def logprobs_and_entropy(hidden, weight, bias):
        settings = settings_of(backend, bias, chunk_rows=2, **TRANSFORMS[transform])
        return tuple(linear_logprob(hidden, weight, SMALL.targets, **settings))

    assert gradcheck(logprobs_and_entropy, leaves(), fast_mode=backend == "triton")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("name", "transform"),
    [
        *((name, "plain") for name in OBJECTIVES if name not in (*DETACHED, "gft+kl")),
        *(("dapo", transform) for transform in TRANSFORMS if transform != "plain"),
    ],
)
def test_linear_policy_loss_gradcheck(name, transform, backend):
    def loss(hidden, weight, bias):
        return linear_policy_loss(
            hidden,
            weight,
            SMALL.targets,
            SMALL.advantages,
            objective=OBJECTIVES[name][0],
            token_weights=WEIGHTS,
            **settings_of(backend, bias, chunk_rows=2, **TRANSFORMS[transform]),
            **inputs_of(SMALL),
        ).loss

    assert gradcheck(loss, leaves(), fast_mode=backend == "triton")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", DETACHED)
def test_linear_policy_loss_detached_coefficients_are_constants_of_the_gradient(name, backend):
    lp, _ = naive_logprobs(SMALL.hidden, SMALL.weight, SMALL.targets, bias=SMALL.bias)
    frozen = COEFFICIENTS[name](lp.exp(), SMALL.advantages, (lp - SMALL.old_logprobs).exp(), SMALL.ref_logprobs)
    common = {"backend": backend, "chunk_rows": 2, "token_weights": WEIGHTS, **inputs_of(SMALL)}
    got = fused(SMALL, objective=OBJECTIVES[name][0], **common)
    surrogate = fused(SMALL, objective=reinforce(), advantages=-frozen, **common)
    torch.testing.assert_close(tuple(got[2:]), tuple(surrogate[2:]), rtol=1e-11, atol=1e-14)
    assert got.hidden.abs().max() > 1e-3  # there is a gradient to compare
