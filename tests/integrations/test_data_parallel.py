"""A fused model under data-parallel wrappers: two processes equal one in every gradient."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from .ranks import RANKS, RUNS


@pytest.fixture(scope="module")
def errors(tmp_path_factory) -> dict[str, list[object]]:
    """What each rank found, by case."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "tests.integrations.ranks", str(folder)]
    processes = [subprocess.Popen([*command, str(rank)], stderr=subprocess.PIPE, text=True) for rank in range(RANKS)]
    outputs = [process.communicate(timeout=300)[1] for process in processes]
    assert not any(process.returncode for process in processes), "\n".join(outputs)
    found = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(RANKS)]
    return {case: [of_rank[case] for of_rank in found] for case in RUNS}


@pytest.mark.parametrize("case", RUNS)
def test_two_processes_equal_one_in_every_gradient(case, errors):
    for error in errors[case]:
        assert isinstance(error, float), error
        assert error < 1e-6, errors[case]
