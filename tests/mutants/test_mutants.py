"""Every seeded fault is seen by the tests named beside it, and those tests pass on the unharmed
package.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ..helpers.verl import missing
from .data_mutants import DATA_MUTANTS
from .distributed_mutants import DISTRIBUTED_MUTANTS
from .evaluation_mutants import EVALUATION_MUTANTS
from .fork import RunTests, copy_packages, process_to_fork
from .kernel_mutants import KERNEL_MUTANTS
from .layers_mutants import LAYERS_MUTANTS
from .loop_mutants import LOOP_MUTANTS
from .low_rank_mutants import LOW_RANK_MUTANTS
from .model_mutants import MODEL_MUTANTS
from .mutants import MUTANTS, Mutant
from .policy_mutants import POLICY_MUTANTS
from .reuse_mutants import REUSE_MUTANTS
from .run_mutants import RUN_MUTANTS
from .sampling_mutants import SAMPLING_MUTANTS
from .sequence_mutants import SEQUENCE_MUTANTS
from .shard_mutants import SHARD_MUTANTS
from .sparse_mutants import SPARSE_MUTANTS
from .step_mutants import STEP_MUTANTS
from .trainer_mutants import TRAINER_MUTANTS
from .verl_mutants import VERL_MUTANTS

EVERY = (
    *MUTANTS,
    *KERNEL_MUTANTS,
    *SPARSE_MUTANTS,
    *STEP_MUTANTS,
    *MODEL_MUTANTS,
    *LOOP_MUTANTS,
    *POLICY_MUTANTS,
    *RUN_MUTANTS,
    *EVALUATION_MUTANTS,
    *REUSE_MUTANTS,
    *SEQUENCE_MUTANTS,
    *SAMPLING_MUTANTS,
    *SHARD_MUTANTS,
    *LAYERS_MUTANTS,
    *LOW_RANK_MUTANTS,
    *TRAINER_MUTANTS,
    *DATA_MUTANTS,
    *DISTRIBUTED_MUTANTS,
    *(() if missing() else VERL_MUTANTS),
)
# Whole runs and commands, several processes, dozens of compiled programs. Those tests run in any
# case; faults that they see are planted in the slow suite.
SLOW = (
    "tests/gft/test_resume.py",
    "tests/gft/test_liger.py",
    "tests/gft/faults/",
    "tests/gft/data/",
    "tests/gft/distributed/",
    "tests/gft/rewards/test_hostile.py",
    "tests/parallel/",
    "tests/ops/compile/test_graphs.py",
)
SECONDS = 120  # for a mutant: most take one; one that hangs is a failure


@pytest.fixture(scope="module")
def run_tests() -> Iterator[RunTests]:
    with process_to_fork() as run:
        yield run


def slowly(value: Mutant | str) -> object:
    """A parameter, marked slow where its tests are."""
    tests = value if isinstance(value, str) else value.tests
    return pytest.param(value, marks=pytest.mark.slow if tests.startswith(SLOW) else ())


@pytest.mark.parametrize("file", [slowly(file) for file in sorted({mutant.tests.split("::")[0] for mutant in EVERY})])
def test_unharmed_package_passes(file, run_tests, tmp_path):
    copy_packages(tmp_path)
    answer = run_tests(tmp_path, sorted({m.tests for m in EVERY if m.tests.startswith(file)}), SECONDS)
    assert answer.code == pytest.ExitCode.OK, answer.output


@pytest.mark.parametrize("mutant", [slowly(mutant) for mutant in EVERY], ids=lambda mutant: mutant.why)
def test_mutant_is_killed(mutant, run_tests, tmp_path):
    path = copy_packages(tmp_path) / mutant.path
    source = path.read_text()
    assert source.count(mutant.old) == 1, f"{mutant.file} has {source.count(mutant.old)} times: {mutant.old}"
    path.write_text(source.replace(mutant.old, mutant.new))
    answer = run_tests(tmp_path, [mutant.tests], SECONDS)
    assert answer.code == pytest.ExitCode.TESTS_FAILED, answer.output  # an error of collection has another code


@pytest.mark.parametrize(
    ("line", "said"), [("raise SystemExit(1)", "the process ended with 1"), ("while True: pass", "still running after")]
)
def test_mutant_that_cannot_be_tested_is_not_killed(line, said, run_tests, tmp_path):
    (copy_packages(tmp_path) / "gft_kernels" / "head.py").write_text(line)
    answer = run_tests(tmp_path, [EVERY[0].tests], 1)
    assert answer.code is None
    assert said in answer.output
