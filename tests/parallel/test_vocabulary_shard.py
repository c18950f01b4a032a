"""Two and three processes that share a vocabulary give what one process gives on the whole head."""

from __future__ import annotations

import functools

import pytest

from .processes import Found, run
from .shards import LATER_FIRST, LAYOUTS, THREE, TWO, cases

LIMITS = {"fp64": 1e-10, "fp32": 1e-5, "fp16": 2**-10, "bf16": 2**-7}  # gradients are rounded
FAST = [
    ("chunked", THREE, "fp64"),
    ("chunked", LATER_FIRST, "fp64"),
    ("chunked", TWO, "fp32"),
    ("chunked", TWO, "bf16"),
]
FAST += [("triton", TWO, "fp64"), ("triton", THREE, "fp64"), ("triton", LATER_FIRST, "fp32"), ("triton", THREE, "fp16")]
SLOW = [("chunked", TWO, "fp64"), ("chunked", THREE, "fp32"), ("chunked", LATER_FIRST, "fp32"), ("triton", TWO, "fp32")]
COMBINATIONS = FAST + [pytest.param(*slow, marks=pytest.mark.slow) for slow in SLOW]


@pytest.fixture(scope="module")
def found(request, tmp_path_factory) -> list[Found]:
    """What each rank found, by case, in the combinations that this session tests."""
    items = [item for item in request.session.items if item.module is request.module]
    asked = {tuple(item.callspec.params[name] for name in ("engine", "layout", "dtype")) for item in items}
    return run(functools.partial(cases, asked), tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize(("engine", "layout", "dtype"), COMBINATIONS)
def test_ranks_equal_one_process_in_every_output_and_gradient(engine, layout, dtype, found):
    wrong, right = [], 0
    for rank in LAYOUTS[layout]:
        for case, errors in found[rank].items():
            if case[:3] != (engine, layout, dtype):
                continue
            if isinstance(errors, dict) and max(errors.values()) < LIMITS[dtype]:
                right += 1
            else:
                wrong.append(f"rank {rank}, {case[3]}: {errors}")
    assert not wrong, "\n".join(wrong)
    assert right
