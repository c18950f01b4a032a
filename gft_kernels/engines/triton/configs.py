"""Launch configurations: one per architecture and operand size, no search unless asked for.

Each compiles without spills and within the architecture's shared memory (the table is
benchmarks/results/aot.csv). GFT_KERNELS_CONFIG=128x256x64x8x3, that is rows x vocabulary x depth x
warps x stages, overrides them all.
"""

from __future__ import annotations

import functools
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from ...head import Head

# Sizes that change every step: rows, chosen rows, responses. Triton would compile a kernel anew for
# a size of 1 and for one that divides by 16.
STEP_SIZES = ("N", "K", "B")
OFFSET_LIMIT = 40.0  # nats: e^40 * V and its products with [K, D] factors stay far inside fp32 and bf16


@dataclass(frozen=True)
class Config:
    """Tile sizes and launch options of the kernels with a GEMM."""

    block_n: int
    block_v: int
    block_d: int
    warps: int = 8
    stages: int = 3
    group: int = 16  # row blocks that share a vocabulary tile in L2

    def blocks(self) -> dict[str, int]:
        return {"BLOCK_N": self.block_n, "BLOCK_V": self.block_v, "BLOCK_D": self.block_d, "GROUP": self.group}

    def options(self) -> dict[str, Any]:
        return launch_options(self.warps, self.stages)


# By bytes of an operand element. Keys are NVIDIA compute capabilities and AMD's gfx names.
CONFIGS: dict[str, dict[int, Config]] = {
    "80": {2: Config(128, 128, 64, 8, 3), 4: Config(64, 64, 32, 4, 3)},
    "89": {2: Config(128, 128, 64, 8, 2), 4: Config(64, 64, 32, 4, 3)},
    "90": {2: Config(128, 256, 64, 8, 3), 4: Config(128, 64, 16, 8, 3)},
    "100": {2: Config(128, 256, 64, 8, 3), 4: Config(64, 64, 32, 4, 3)},
    "120": {2: Config(128, 128, 64, 8, 2), 4: Config(64, 64, 32, 4, 3)},
    "gfx942": {2: Config(128, 128, 32, 8, 2), 4: Config(64, 64, 32, 4, 2)},
}
# For a soft cap or the entropy's gradient, which keep the logits beside the exponentials: the
# entries of CONFIGS would spill there.
TWO_TILES: dict[str, dict[int, Config]] = {
    "90": {2: Config(128, 128, 64, 8, 3)},
    "100": {2: Config(128, 128, 64, 8, 3)},
    "gfx942": {2: Config(128, 128, 64, 8, 2)},
}
ELEMENTS = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}
NEAREST = {"86": "89", "87": "80", "103": "100", "110": "100", "121": "120"}
INTERPRETED = Config(16, 32, 32, 1, 1, group=2)
_override: Config | None = None


@contextmanager
def use_config(config: Config) -> Iterator[None]:
    """Run every launch inside the block with `config`."""
    global _override
    before, _override = _override, config
    try:
        yield
    finally:
        _override = before


def parse_config(text: str) -> Config:
    """Config of "rows x vocabulary x depth x warps x stages", for example 128x256x64x8x3.

    Raises:
        ValueError: not five positive integers, or a block that is not a power of two from 16.
    """
    if not re.fullmatch(r"\d+(x\d+){4}", text):
        raise ValueError(
            f"GFT_KERNELS_CONFIG = {text!r}: give rows x vocabulary x depth x warps x stages, for example "
            "128x256x64x8x3."
        )
    sizes = [int(part) for part in text.split("x")]
    if (
        any(size < 16 or size & (size - 1) for size in sizes[:3])
        or sizes[3] not in (1, 2, 4, 8, 16)
        or not 1 <= sizes[4] <= 8
    ):
        raise ValueError(
            f"GFT_KERNELS_CONFIG = {text!r}: blocks must be powers of two from 16, warps 1 to 16, stages 1 to 8."
        )
    return Config(*sizes)


@functools.cache
def architecture(device: torch.device) -> str:
    """The key of CONFIGS for a device: its own, or the nearest that is known."""
    if torch.version.hip is not None:
        name = torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
        return name if name in CONFIGS else "gfx942"
    major, minor = torch.cuda.get_device_capability(device)
    name = f"{major}{minor}"
    return name if name in CONFIGS else NEAREST.get(name, "80" if major < 9 else "120" if major >= 12 else "90")


def shipped(name: str, dtype: torch.dtype, head: Head, entropy: bool = False) -> Config:
    """The configuration of an architecture for operands of `dtype`.

    `entropy` asks for that of a kernel which takes the entropy's gradient.
    """
    size = min(dtype.itemsize, 4)
    plain = CONFIGS[name][size]
    return TWO_TILES.get(name, {}).get(size, plain) if entropy or head.softcap is not None else plain


def config_for(device: torch.device, dtype: torch.dtype, head: Head, entropy: bool = False) -> Config:
    """The launch configuration on `device`: the override, or what is shipped."""
    config = _override
    if config is None and (text := os.environ.get("GFT_KERNELS_CONFIG")):
        config = parse_config(text)
    if config is None:
        config = shipped(architecture(device), dtype, head, entropy) if device.type == "cuda" else INTERPRETED
    return config


def launch_options(warps: int, stages: int) -> dict[str, Any]:
    """Options of a launch. FP fusion is stated, because its default changes between releases."""
    return {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}


def accumulator(dtype: torch.dtype) -> tuple[torch.dtype, tl.dtype]:
    """(torch, Triton) dtype of the accumulators for operands of `dtype`."""
    return (torch.float64, tl.float64) if dtype == torch.float64 else (torch.float32, tl.float32)


def per_tile(dtype: torch.dtype) -> bool:
    """Whether each tile needs an offset: the range of `dtype` is too short for one a row."""
    return dtype == torch.float16


def transforms(head: Head) -> dict[str, float | bool]:
    """The head's transforms for the kernels.

    z = inner * raw, or where CAPPED z = outer * tanh(inner * raw).
    """
    if head.softcap is None:
        return {"inner": head.scale / head.temperature, "outer": math.inf, "CAPPED": False}
    return {"inner": head.scale / head.softcap, "outer": head.softcap / head.temperature, "CAPPED": True}


def pad(columns: int) -> int:
    """Row stride of a buffer [K, columns], a multiple of 64 elements: rows start on 128 bytes."""
    return triton.cdiv(columns, 64) * 64
