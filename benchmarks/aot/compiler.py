"""A kernel compiled for an architecture that is not there: each launch stops after its compilation.

Signatures, alignments, constants and configurations are those of a real call.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from gft_kernels.engines.triton.configs import CONFIGS


@dataclass(frozen=True)
class Architecture:
    """A GPU, what a program may have on it, and the instructions that products must use."""

    target: GPUTarget
    shared_limit: int  # bytes a program may have
    matrix: str  # of 16-bit operands
    matrix_fp32: str = ""  # of fp32 ones; empty where they are FMAs


ARCHITECTURES = {
    "80": Architecture(GPUTarget("cuda", 80, 32), 166912, "mma.sync"),
    "89": Architecture(GPUTarget("cuda", 89, 32), 101376, "mma.sync"),
    "90": Architecture(GPUTarget("cuda", 90, 32), 232448, "wgmma.mma_async"),
    "100": Architecture(GPUTarget("cuda", 100, 32), 232448, "tcgen05.mma"),
    "120": Architecture(GPUTarget("cuda", 120, 32), 101376, "mma.sync"),
    "gfx942": Architecture(GPUTarget("hip", "gfx942", 64), 65536, "v_mfma", "v_mfma"),
}
assert ARCHITECTURES.keys() == CONFIGS.keys()


@dataclass(frozen=True)
class Offline:
    """A driver for a device that is not there."""

    target: GPUTarget

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> GPUTarget:  # keys Triton's caches
        return self.target

    def get_current_stream(self, device: GPUTarget) -> int:
        return 0


def compile_only(target: GPUTarget, launch: Callable[[], object]) -> Any:
    """The one kernel that `launch` starts, compiled for `target` and not run."""
    found = []
    run = JITFunction.run

    def compile_one(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        found.append(run(self, *args, grid=grid, warmup=True, **kwargs))

    driver.set_active(Offline(target))
    with mock.patch.object(JITFunction, "run", compile_one):
        launch()
    (kernel,) = found
    return kernel


def resources(kernel: Any) -> tuple[int, int]:
    """(registers a thread, bytes a thread keeps in memory for want of registers)."""
    if "amdgcn" in kernel.asm:
        counts = dict(re.findall(r"\.(vgpr_count|vgpr_spill_count|sgpr_spill_count):\s+(\d+)", kernel.asm["amdgcn"]))
        return int(counts["vgpr_count"]), 4 * (int(counts["vgpr_spill_count"]) + int(counts["sgpr_spill_count"]))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = re.findall(r"REG:(\d+) STACK:(\d+)", usage)[0]
    return int(registers), int(stack)
