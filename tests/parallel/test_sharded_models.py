"""Models that FSDP2 and tensor parallelism have sharded train as one process does."""

from __future__ import annotations

import pytest

from .models import cases
from .processes import RANKS, Found, run


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[Found]:
    """What each rank found, by case."""
    return run(cases, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("case", cases())
def test_sharded_model_trains_as_one_process(case, found):
    errors = [found[rank][case] for rank in range(RANKS)]
    assert all(isinstance(error, float) and error < 1e-6 for error in errors), errors
