"""Two processes make the run of one: every number and every weight within rounding."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file

from gft.metrics import read_metrics

from ..runs import numbers
from .conftest import KINDS
from .scenarios import SCENARIOS, STEPS

ROUNDING = 1e-6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SCENARIOS)
def test_two_processes_log_the_numbers_of_one(name, kind, outcomes):
    found, expected = (numbers(read_metrics(outcomes[name, k] / "metrics.jsonl")) for k in (kind, "one process"))
    assert len(found) == STEPS
    for row, other in zip(found, expected, strict=True):
        assert row.keys() == other.keys()
        assert row == pytest.approx(other, rel=ROUNDING, abs=ROUNDING)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SCENARIOS)
def test_two_processes_end_with_the_weights_of_one(name, kind, outcomes):
    found, expected = (load_file(outcomes[name, k] / "model" / "model.safetensors") for k in (kind, "one process"))
    assert found.keys() == expected.keys()
    worst = max((found[weight] - expected[weight]).abs().max().item() for weight in expected)
    print(f"{name}, {kind}: {worst:.1e}")
    assert worst < ROUNDING
