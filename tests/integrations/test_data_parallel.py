"""A fused model under data-parallel wrappers: two processes equal one in every gradient."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from .mixed import MIXED
from .ranks import RANKS, RUNS

BF16 = 2.0**-8  # the distance of 1 to the next number


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, list[object]]:
    """What each rank found, by case."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "tests.integrations.ranks", str(folder)]
    processes = [subprocess.Popen([*command, str(rank)], stderr=subprocess.PIPE, text=True) for rank in range(RANKS)]
    outputs = [process.communicate(timeout=300)[1] for process in processes]
    assert not any(process.returncode for process in processes), "\n".join(outputs)
    of_ranks = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(RANKS)]
    return {case: [of_rank[case] for of_rank in of_ranks] for case in (*RUNS, *MIXED)}


@pytest.mark.parametrize("case", RUNS)
def test_two_processes_equal_one_in_every_gradient(case, found):
    for error in found[case]:
        assert isinstance(error, float), error
        assert error < 1e-6, found[case]


@pytest.mark.parametrize("case", MIXED)
def test_mixed_precision_leaves_the_loss_in_fp32(case, found):
    """Log-probs are exact for bf16 operands, and what a batch brings is not cast to bf16.

    The ratio of a policy to itself is 1 then: old log-probs in bf16 would be 1% off.
    """
    for rank in found[case]:
        assert isinstance(rank, dict), rank
        assert rank["log-probs"] < 1e-6 < 1e-4 < rank["log-probs of bf16 logits"]
        assert rank["ratio to itself"] < 1e-6


@pytest.mark.parametrize("case", MIXED)
def test_mixed_precision_gradients_are_within_rounding(case, found):
    """Weights, hidden states and their gradients are rounded, one after the other, by 2^-9 each.

    Through two layers that is a few units of bf16, for the model's own logits too. Those are
    rounded once more, so the fused loss is no farther from fp32.
    """
    for rank in found[case]:
        assert isinstance(rank, dict), rank
        assert 1e-3 < rank["fused to fp32"] < rank["eager to fp32"] + BF16 < 9 * BF16
        assert 1e-3 < rank["fused to eager"] < 8 * BF16
