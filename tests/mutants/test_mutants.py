"""Every seeded fault is seen by the tests named beside it, and those tests pass on the unharmed
package.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from .kernel_mutants import KERNEL_MUTANTS
from .mutants import MUTANTS, Mutant
from .sparse_mutants import SPARSE_MUTANTS

ROOT = Path(__file__).parents[2]
EVERY = MUTANTS + KERNEL_MUTANTS + SPARSE_MUTANTS
TESTS_FAILED = 1  # pytest's exit code; a collection or usage error has another


def run_copy(folder: Path, tests: set[str], mutant: Mutant | None = None) -> subprocess.CompletedProcess:
    """Run `tests` in a copy of the package and its suite, with the mutant's fault planted."""
    shutil.copytree(ROOT / "gft_kernels", folder / "gft_kernels", ignore=shutil.ignore_patterns("__pycache__"))
    for room in ("helpers", "losses", "engines", "ops"):
        shutil.copytree(ROOT / "tests" / room, folder / "tests" / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "tests/__init__.py", "tests/conftest.py"):
        shutil.copy(ROOT / name, folder / name)
    if mutant is not None:
        path = folder / "gft_kernels" / mutant.file
        source = path.read_text()
        assert source.count(mutant.old) == 1, f"{mutant.file} has {source.count(mutant.old)} times: {mutant.old}"
        path.write_text(source.replace(mutant.old, mutant.new))
    command = [sys.executable, "-B", "-m", "pytest", "-x", "-p", "no:cacheprovider", *sorted(tests)]
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[Mutant | None, Future]:
    """All runs, two at a time; None is the unharmed package under every test named."""
    with ThreadPoolExecutor(2) as pool:
        started = {None: pool.submit(run_copy, tmp_path_factory.mktemp("unharmed"), {mutant.tests for mutant in EVERY})}
        started |= {m: pool.submit(run_copy, tmp_path_factory.mktemp("mutant"), {m.tests}, m) for m in EVERY}
        yield started


def test_unharmed_package_passes(runs):
    result = runs[None].result()
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("mutant", EVERY, ids=lambda mutant: mutant.why)
def test_mutant_is_killed(mutant, runs):
    result = runs[mutant].result()
    assert result.returncode == TESTS_FAILED, result.stdout + result.stderr
