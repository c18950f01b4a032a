"""Every kernel compiles without spills, within shared memory and with its matrix instruction.

benchmarks/results/aot.csv says so.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")

from benchmarks.aot import __main__ as tool  # noqa: E402
from benchmarks.aot import launches, rows  # noqa: E402
from benchmarks.record import read_rows  # noqa: E402

ROOT = Path(__file__).parents[2]
SUBSET = {"architectures": ("80", "90"), "dtypes": ("bf16",)}
COMMITTED = read_rows(rows.TABLE)
VERSIONS = sorted({row["triton"] for row in COMMITTED})
REGENERATE = "run python -m benchmarks.aot under each Triton version of benchmarks/results/aot.csv"


def case_of(row):
    return row["arch"], row["kernel"], row["variant"], row["dtype"]


def unfit(table):
    return {case_of(row): found for row in table if (found := rows.violations(row))}


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """Rows compiled now, in a process without the interpreter that the test session runs under."""
    out = tmp_path_factory.mktemp("aot") / "aot.csv"
    command = [sys.executable, "-m", "benchmarks.aot", "--jobs", "2", "--out", str(out)]
    command += ["--arch", *SUBSET["architectures"], "--dtype", *SUBSET["dtypes"]]
    environment = {
        name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET", "GFT_KERNELS_CONFIG")
    }
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert out.exists(), done.stdout + done.stderr
    return read_rows(out)


def test_kernels_compile_clean(fresh):
    assert [case_of(row) for row in fresh] == rows.cases(**SUBSET)
    assert not unfit(fresh)


def test_the_table_is_what_compiles_now(fresh):
    if triton.__version__ not in VERSIONS:
        pytest.skip(f"the table has no rows of Triton {triton.__version__}")
    chosen = set(rows.cases(**SUBSET))
    committed = {
        case_of(row): row for row in COMMITTED if row["triton"] == triton.__version__ and case_of(row) in chosen
    }
    assert {case_of(row): row for row in fresh} == committed, REGENERATE


@pytest.mark.parametrize("version", VERSIONS)
def test_the_table_covers_the_matrix_and_shows_nothing_unfit(version):
    committed = [row for row in COMMITTED if row["triton"] == version]
    assert Counter(map(case_of, committed)) == Counter(rows.cases()), REGENERATE
    assert not unfit(committed)


def test_the_table_has_the_shipped_configurations():
    for row in COMMITTED:
        if row["kernel"] in rows.MATRIX_KERNELS:
            arch, *launch, dtype = case_of(row)
            config = launches.Problem(arch, rows.DTYPES[dtype], **launches.LAUNCHES[tuple(launch)][0]).config
            shipped = f"{config.block_n}x{config.block_v}x{config.block_d}x{config.warps}x{config.stages}"
            assert row["config"] == shipped, (case_of(row), REGENERATE)


def test_every_kernel_is_in_the_matrix():
    trees = [ast.parse(path.read_text()) for path in (ROOT / "gft_kernels" / "engines" / "triton").glob("*.py")]
    functions = {node.name for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert {name for name in functions if name.endswith("_kernel")} == {kernel for kernel, _ in launches.LAUNCHES}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spill_bytes": "8"}, "spills 8 bytes"),
        ({"shared": "232449"}, "needs 232449 bytes"),
        ({"instruction": ""}, "uses no matrix instruction instead of wgmma"),
        ({"instruction": "mma.sync"}, "uses mma.sync instead of wgmma"),
        ({"dtype": "fp32"}, "uses wgmma.mma_async instead of none"),  # TF32 in place of fp32
    ],
)
def test_violations_finds_what_is_unfit(change, message):
    row = {"arch": "90", "kernel": "head_fwd_kernel", "variant": "store", "dtype": "bf16", "spill_bytes": "0"}
    row |= {"shared": "147456", "shared_limit": "232448", "instruction": "wgmma.mma_async"}
    assert rows.violations(row) == []
    (found,) = rows.violations(row | change)
    assert found.startswith(message)


def test_the_tool_refuses_the_interpreter(capsys, monkeypatch):
    monkeypatch.setattr(triton.knobs.runtime, "interpret", True)
    with pytest.raises(SystemExit):
        tool.main([])
    assert "TRITON_INTERPRET is set" in capsys.readouterr().err
