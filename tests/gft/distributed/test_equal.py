"""Two processes make the run of one: every number and every weight within rounding."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file

from gft.metrics import read_metrics

from ..runs import numbers
from .conftest import PLACES
from .scenarios import STEPS, model

ROUNDING = 1e-6
each_place = pytest.mark.parametrize(
    ("name", "kind"), [pytest.param(*place, marks=pytest.mark.slow if slow else ()) for place, slow in PLACES.items()]
)


@each_place
def test_two_processes_log_the_numbers_of_one(name, kind, outcomes):
    found, expected = (numbers(read_metrics(out / "metrics.jsonl")) for out in outcomes(name, kind))
    assert len(found) == STEPS
    for row, other in zip(found, expected, strict=True):
        assert row.keys() == other.keys()
        assert row == pytest.approx(other, rel=ROUNDING, abs=ROUNDING)


@each_place
def test_two_processes_end_with_the_weights_of_one(name, kind, outcomes):
    found, expected = (load_file(out / "model" / "model.safetensors") for out in outcomes(name, kind))
    assert found.keys() == expected.keys()
    assert worst(found, expected) < ROUNDING
    assert (worst(found, model().state_dict()) > 100 * ROUNDING) is (name != "all flat")


def worst(found, expected):
    return max((found[name] - expected[name]).abs().max().item() for name in expected)
