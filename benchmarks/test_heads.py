"""pytest benchmarks/: the same providers under pytest-benchmark.

It is for comparisons and histograms (--benchmark-compare, --benchmark-histogram). It takes one
provider after the other: for ratios to quote, use `python -m benchmarks`, which interleaves them.
GFT_BENCH_SET names another set of cases, and GFT_BENCH_DEVICE another device.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import pytest

from .heads.ours import FLOORS, find, missing, providers
from .inputs.cases import SETS, Batch, Case, make_batch
from .timing.gate import GATE_ROWS, Found, oracle, step, verdict
from .timing.runner import MODES, timed_step

DEVICE = os.environ.get("GFT_BENCH_DEVICE", "cpu")
CASES = SETS[os.environ.get("GFT_BENCH_SET", DEVICE)]


@functools.cache
def prepared(case: Case) -> tuple[Batch, Batch, Found]:
    """A batch, its thinned rows and what fp64 makes of them."""
    batch = make_batch(case, DEVICE)
    thinned = batch.thinned(GATE_ROWS)
    return batch, thinned, oracle(thinned)


@pytest.mark.parametrize("name", [*FLOORS, *providers(), *missing()])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label.replace(" ", "-"))
def test_forward_and_backward(benchmark: Any, case: Case, name: str) -> None:
    if name in missing():
        pytest.skip(missing()[name])
    batch, thinned, expected = prepared(case)
    benchmark.group = case.label
    if name not in FLOORS:
        errors = step(find(name), thinned).errors(expected)
        if reason := verdict(name, errors, case.dtype):
            pytest.skip(reason)
        benchmark.extra_info.update(errors)
    parts = benchmark.pedantic(timed_step, (find(name), batch), rounds=3, warmup_rounds=1)
    benchmark.extra_info.update(dict(zip(MODES, parts, strict=True)))  # of the last round, in ms
