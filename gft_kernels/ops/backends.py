"""Which engine runs. A new backend is one engine, a line here and its name in validation.BACKENDS."""

from __future__ import annotations

import functools
import importlib.util

import torch

from ..engines import chunked, eager
from ..engines.contract import Engine


@functools.cache
def engine_of(name: str) -> Engine:
    """The engine of a name that `engine_name` returned; Triton is imported when first asked for."""
    if name == "triton":
        from ..engines.triton import engine

        return engine
    return eager if name == "eager" else chunked


@functools.cache
def _runs_triton(device: torch.device) -> bool:
    """Whether Triton is installed and has matrix instructions for `device`: ROCm, or NVIDIA from Ampere on."""
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return False
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)


@torch.compiler.assume_constant_result
def engine_name(name: str, device: torch.device, dtype: torch.dtype) -> str:
    """`name` itself, or what "auto" means: Triton on GPUs that run it, for up to 32 bits; else chunked."""
    if name == "auto":
        return "triton" if dtype != torch.float64 and _runs_triton(device) else "chunked"
    return name
