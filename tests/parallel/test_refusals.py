"""What a shard cannot do is refused on all ranks, and none of them waits for another."""

from __future__ import annotations

import functools
import re

import pytest

from .processes import RANKS, Found, run
from .refused import CASES, cases


@pytest.fixture(scope="module")
def found(request, tmp_path_factory) -> list[Found]:
    """What each rank found, by case, in the cases that this session tests."""
    items = [item for item in request.session.items if item.module is request.module]
    asked = {item.callspec.params["case"] for item in items}
    return run(functools.partial(cases, asked), tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("case", CASES)
def test_every_rank_refuses_by_name(case, found):
    said = [found[rank][case] for rank in range(RANKS)]
    assert all(re.search(CASES[case][1], text, re.DOTALL) for text in said), said
