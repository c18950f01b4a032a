"""The table of compiled kernels, and what makes a row of it unfit to ship."""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import triton

from ..record import RESULTS, read_rows
from .compiler import ARCHITECTURES, compile_only, resources
from .launches import LAUNCHES, Problem

Case = tuple[str, str, str, str]  # architecture, kernel, variant, dtype
TABLE = RESULTS / "aot.csv"
FIELDS = (
    "triton",
    "arch",
    "kernel",
    "variant",
    "dtype",
    "config",
    "registers",
    "spill_bytes",
    "shared",
    "shared_limit",
    "instruction",
)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
INSTRUCTIONS = re.compile(r"wgmma\.mma_async|tcgen05\.mma|mma\.sync|v_mfma")
MATRIX_KERNELS = {"head_fwd_kernel", "head_bwd_kernel"}


def measure(case: Case) -> dict[str, Any]:
    """The table's row of one (arch, kernel, variant, dtype)."""
    arch, name, variant, dtype = case
    shape, launch = LAUNCHES[name, variant]
    problem = Problem(arch, DTYPES[dtype], **shape)
    kernel = compile_only(ARCHITECTURES[arch].target, lambda: launch(problem))
    assert kernel.metadata.name == name, f"{case} launched {kernel.metadata.name}"
    constants = kernel.src.constants
    blocks = [constants[i,] for i, arg in enumerate(kernel.src.fn.arg_names) if arg.startswith("BLOCK_")]
    registers, spill_bytes = resources(kernel)
    values = (
        triton.__version__,
        *case,
        "x".join(map(str, (*blocks, kernel.metadata.num_warps, kernel.metadata.num_stages))),
        registers,
        spill_bytes,
        kernel.metadata.shared,
        ARCHITECTURES[arch].shared_limit,
        "+".join(sorted(set(INSTRUCTIONS.findall(kernel.asm["amdgcn" if "amdgcn" in kernel.asm else "ptx"])))),
    )
    return dict(zip(FIELDS, map(str, values), strict=True))


def cases(architectures: Iterable[str] = tuple(ARCHITECTURES), dtypes: Iterable[str] = tuple(DTYPES)) -> list[Case]:
    """Every (arch, kernel, variant, dtype)."""
    return [(arch, *launch, dtype) for arch, launch, dtype in itertools.product(architectures, LAUNCHES, dtypes)]


def violations(row: dict[str, str]) -> list[str]:
    """Why a row may not be shipped."""
    architecture = ARCHITECTURES[row["arch"]]
    expected = architecture.matrix_fp32 if row["dtype"] == "fp32" else architecture.matrix
    expected = expected if row["kernel"] in MATRIX_KERNELS else ""
    found = []
    if int(row["spill_bytes"]):
        found.append(f"spills {row['spill_bytes']} bytes a thread")
    if int(row["shared"]) > int(row["shared_limit"]):
        found.append(f"needs {row['shared']} bytes of shared memory of {row['shared_limit']}")
    if row["instruction"] != expected:
        found.append(f"uses {row['instruction'] or 'no matrix instruction'} instead of {expected or 'none'}")
    return found


def write(rows: Sequence[dict[str, str]], path: Path) -> None:
    """Replace the rows of this Triton version."""
    others = [row for row in read_rows(path) if row["triton"] != triton.__version__]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted((*others, *rows), key=lambda row: row["triton"]))
