"""Objectives by name and numbers, and what is said of a name or number that there is not."""

from __future__ import annotations

import pytest

from gft_kernels import cispo, dft, gft, grpo, reinforce, sft
from gft_kernels.integrations.named import OBJECTIVES, named_objective

NAMED = {
    "sft": ({}, sft()),
    "dft": ({}, dft()),
    "gft": ({"tau": 0.5}, gft(0.5)),
    "reinforce": ({}, reinforce()),
    "grpo": ({"clip_low": 0.1, "clip_high": 0.3, "dual_clip": 3}, grpo(0.1, 0.3, dual_clip=3)),
    "cispo": ({"clip_high": 2.0}, cispo(clip_high=2.0)),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_named_objective_is_that_objective(name):
    numbers, expected = NAMED[name]
    assert named_objective(name, numbers) == expected
    assert type(named_objective(name, {})) is type(expected)


REFUSED = {
    "no such name": ("ppo", {}, ValueError, r"objective = 'ppo': choose one of sft, dft, gft, reinforce"),
    "no such number": ("gft", {"tua": 0.1}, ValueError, r"tua = 0.1: the objective gft has tau"),
    "no numbers": ("sft", {"tau": 0.1}, ValueError, r"tau = 0.1: the objective sft has no numbers"),
    "text": ("gft", {"tau": "7e-1"}, TypeError, r"tau = '7e-1'.*YAML"),
    "a truth value": ("gft", {"tau": True}, TypeError, r"tau = True"),
    "out of range": ("grpo", {"clip_low": -0.1}, ValueError, r"clip_low = -0.1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_named_objective_refuses(case):
    name, numbers, error, said = REFUSED[case]
    with pytest.raises(error, match=said):
        named_objective(name, numbers)


def test_named_objective_is_among_those_that_make_sense():
    with pytest.raises(ValueError, match="objective = 'grpo': choose one of sft, gft"):
        named_objective("grpo", {}, ("sft", "gft"))
