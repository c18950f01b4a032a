"""python -m benchmarks.aot: every Triton kernel compiled for every architecture, with no GPU, into
results/aot.csv.

The launchers themselves run, on tensors without memory, and each launch stops after its
compilation: signatures, alignments, constants and configurations are those of a real call.
`violations` says what makes a row unfit to ship. Rows of other Triton versions stay in the table;
run the tool once under each version that is to have rows.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import multiprocessing
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from gft_kernels.engines.contract import LossPlan, Scores
from gft_kernels.engines.triton import logits as logits_kernels
from gft_kernels.engines.triton.arguments import loss_arguments
from gft_kernels.engines.triton.backward import head_backward
from gft_kernels.engines.triton.column_stats import look
from gft_kernels.engines.triton.configs import CONFIGS, Config, pad, shipped
from gft_kernels.engines.triton.finalise import Rows, finalise
from gft_kernels.engines.triton.forward import head_forward, head_target_logit
from gft_kernels.engines.triton.rescale import rescale
from gft_kernels.head import Head
from gft_kernels.losses import objectives
from gft_kernels.losses.advantages import GroupRewards

from .record import RESULTS, read_rows

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


@dataclass(frozen=True)
class Architecture:
    """`matrix` is the instruction a product of 16-bit operands must use, `matrix_fp32` one of fp32
    (empty: FMA).
    """

    target: GPUTarget
    shared_limit: int  # bytes a program may have
    matrix: str
    matrix_fp32: str = ""


ARCHITECTURES = {
    "80": Architecture(GPUTarget("cuda", 80, 32), 166912, "mma.sync"),
    "89": Architecture(GPUTarget("cuda", 89, 32), 101376, "mma.sync"),
    "90": Architecture(GPUTarget("cuda", 90, 32), 232448, "wgmma.mma_async"),
    "100": Architecture(GPUTarget("cuda", 100, 32), 232448, "tcgen05.mma"),
    "120": Architecture(GPUTarget("cuda", 120, 32), 101376, "mma.sync"),
    "gfx942": Architecture(GPUTarget("hip", "gfx942", 64), 65536, "v_mfma", "v_mfma"),
}
assert ARCHITECTURES.keys() == CONFIGS.keys()
MATRIX_KERNELS = {"head_fwd_kernel", "head_bwd_kernel"}


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


@dataclass(frozen=True)
class Problem:
    """A chunk of K rows of a head [V, D] without memory, and the launches over it."""

    arch: str
    dtype: torch.dtype
    K: int = 4096
    D: int = 4096
    V: int = 50257  # odd, as real vocabularies are
    capped: bool = False  # bias and soft cap
    entropy: bool = False  # an upstream gradient on the entropy
    rewards: torch.dtype = torch.float32

    @property
    def head(self) -> Head:
        return Head(softcap=30.0) if self.capped else Head()

    @property
    def config(self) -> Config:
        return shipped(self.arch, self.dtype, self.head, self.entropy)

    @property
    def operands(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """hidden, weight, bias, targets."""
        bias = empty(self.V, dtype=self.dtype) if self.capped else None
        return (
            empty(self.K, self.D, dtype=self.dtype),
            empty(self.V, self.D, dtype=self.dtype),
            bias,
            empty(self.K, dtype=torch.int64),
        )

    @property
    def chunk(self) -> Tensor:
        return empty(self.K, pad(self.V), dtype=self.dtype)[:, : self.V]

    @property
    def partials(self) -> Tensor:
        return empty(3, triton.cdiv(self.V, self.config.block_v), self.K)

    @property
    def unit(self) -> Tensor | None:
        return empty() if self.dtype == torch.float16 else None

    def forward(self, store: bool) -> None:
        head_forward(*self.operands, empty(self.K), self.chunk if store else None, self.head, self.config)

    def backward(self) -> None:
        scores = Scores(empty(self.K), empty(self.K), empty(2, self.K))
        upstream = (empty(self.K), empty(self.K) if self.entropy else None)
        head_backward(*self.operands, scores, upstream, self.chunk, self.head, self.config)

    def finalise(self, plan: LossPlan | None) -> None:
        arguments = None if plan is None else loss_arguments(plan, slice(0, self.K), self.unit)
        finalise(self.partials, empty(self.K), self.dtype, self.head, arguments)

    def gft(self) -> LossPlan:
        """GFT on group rewards, normalised in the kernel."""
        rewards = GroupRewards(
            empty(64, dtype=self.rewards), empty(64, dtype=torch.int64), empty(self.K, dtype=torch.int64)
        )
        given = dict.fromkeys(("advantages", "old_logprobs", "ref_logprobs"))
        return LossPlan(self.operands[3], None, empty(self.K), given, objectives.gft(0.7), self.head, rewards)

    def grpo(self) -> LossPlan:
        """GRPO with a KL penalty on given advantages."""
        given = {name: empty(self.K) for name in ("advantages", "old_logprobs", "ref_logprobs")}
        objective = objectives.grpo() + objectives.kl(0.01)
        return LossPlan(self.operands[3], None, empty(self.K), given, objective, self.head)

    def rescale(self) -> None:
        rescale(
            self.chunk, self.partials, Rows(*empty(len(Rows._fields), self.K).unbind()), self.operands[3], self.config
        )

    def logits_loss(self, plan: LossPlan, gradient: bool) -> None:
        """On logits as a model returns them: adjacent rows, their gradient in place."""
        logits = empty(self.K, self.V, dtype=self.dtype)
        logits_kernels.logits_loss(
            logits, plan, logits if gradient else None, self.unit, (1, 4096)
        )  # the block of engine.logits_loss


ALIGNED: dict[str, Any] = {"V": 256000}
CAPPED: dict[str, Any] = ALIGNED | {"capped": True}
ENTROPY: dict[str, Any] = {"entropy": True}
PRECISE: dict[str, Any] = {"rewards": torch.float64}  # as numpy hands them over
RAGGED: dict[str, Any] = {"K": 999, "D": 1040}  # neither fills its blocks
# (kernel, variant): what differs from the default problem, and the launch.
LAUNCHES: dict[tuple[str, str], tuple[dict[str, Any], Callable[[Problem], None]]] = {
    ("head_target_logit_kernel", ""): ({}, lambda p: head_target_logit(*p.operands, p.head)),
    ("head_target_logit_kernel", "bias+softcap"): (CAPPED, lambda p: head_target_logit(*p.operands, p.head)),
    ("head_fwd_kernel", "store"): ({}, lambda p: p.forward(True)),
    ("head_fwd_kernel", "store bias+softcap"): (CAPPED, lambda p: p.forward(True)),
    ("head_fwd_kernel", "store ragged"): (RAGGED, lambda p: p.forward(True)),
    ("head_fwd_kernel", "scores"): ({}, lambda p: p.forward(False)),
    ("head_fwd_kernel", "scores bias+softcap"): (CAPPED, lambda p: p.forward(False)),
    ("head_bwd_kernel", ""): ({}, Problem.backward),
    ("head_bwd_kernel", "bias+softcap"): (CAPPED, Problem.backward),
    ("head_bwd_kernel", "ragged"): (RAGGED, Problem.backward),
    ("head_bwd_kernel", "entropy"): (ENTROPY, Problem.backward),
    ("head_bwd_kernel", "entropy bias+softcap"): (CAPPED | ENTROPY, Problem.backward),
    ("head_bwd_kernel", "entropy ragged"): (RAGGED | ENTROPY, Problem.backward),
    ("finalise_kernel", "scores"): ({}, lambda p: p.finalise(None)),
    ("finalise_kernel", "gft group rewards"): ({}, lambda p: p.finalise(p.gft())),
    ("finalise_kernel", "gft fp64 rewards"): (PRECISE, lambda p: p.finalise(p.gft())),
    ("finalise_kernel", "grpo+kl bias+softcap"): (CAPPED, lambda p: p.finalise(p.grpo())),
    ("rescale_kernel", ""): ({}, Problem.rescale),
    ("rescale_kernel", "bias+softcap"): (CAPPED, Problem.rescale),
    ("columns_kernel", ""): ({}, lambda p: look(p.chunk, empty(p.K))),
    ("logits_loss_kernel", "loss"): ({}, lambda p: p.logits_loss(p.gft(), False)),
    ("logits_loss_kernel", "gft group rewards"): ({}, lambda p: p.logits_loss(p.gft(), True)),
    ("logits_loss_kernel", "gft fp64 rewards"): (PRECISE, lambda p: p.logits_loss(p.gft(), True)),
    ("logits_loss_kernel", "grpo+kl"): (ALIGNED, lambda p: p.logits_loss(p.grpo(), True)),
    ("scale_kernel", ""): ({}, lambda p: logits_kernels.scale_(empty(p.K, p.V, dtype=p.dtype), empty())),
}


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


def compile_only(target: GPUTarget, launch: Callable[[], None]) -> Any:
    """The one kernel that `launch` starts, compiled for `target` and not run."""
    found = []
    run = JITFunction.run

    def compile_one(self, *args, grid, warmup, **kwargs):
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
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage).groups()
    return int(registers), int(stack)


def measure(case: tuple[str, str, str, str]) -> dict[str, Any]:
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


def cases(
    architectures: Iterable[str] = tuple(ARCHITECTURES), dtypes: Iterable[str] = tuple(DTYPES)
) -> list[tuple[str, str, str, str]]:
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


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.aot", description=__doc__.splitlines()[0])
    parser.add_argument("--arch", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument(
        "--out", type=Path, help="CSV to write; default: results/aot.csv where everything is compiled, else none"
    )
    options = parser.parse_args(arguments)
    if triton.knobs.runtime.interpret:
        parser.error("TRITON_INTERPRET is set: nothing compiles in the interpreter.")
    chosen = cases(options.arch, options.dtype)
    rows = []
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
        for row in pool.map(measure, chosen):
            rows.append(row)
            print(
                "{arch:>6} {kernel:21} {variant:20} {dtype} {config:15} {registers:>3} registers".format(**row),
                violations(row) or "",
            )
    out = options.out or (TABLE if chosen == cases() else None)
    if out is not None:
        write(rows, out)
    return int(any(map(violations, rows)))


if __name__ == "__main__":
    sys.exit(main())
