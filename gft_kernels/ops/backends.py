"""The backends by name, and the choice `auto` makes. A new backend is one engine and one line here."""

from __future__ import annotations

import functools
import importlib.util

import torch

from ..engines import chunked, eager
from ..engines.contract import Backend, Engine
from .autograd import backend_of

NAMES = ("eager", "chunked", "triton")


@functools.cache
def resolve_engine(name: str) -> Engine:
    """The engine behind a fused backend; Triton is imported when first asked for."""
    if name == "triton":
        from ..engines import triton

        return triton.ENGINE
    return chunked.ENGINE


@functools.cache
def _runs_triton(device: torch.device) -> bool:
    """Whether Triton is installed and `device` is a GPU it has matrix instructions for: ROCm, or
    NVIDIA from Ampere on.
    """
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return False
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)


@torch.compiler.assume_constant_result
def backend_name(name: str, device: torch.device, dtype: torch.dtype) -> str:
    """`name` itself, or what "auto" means: Triton on GPUs that run it, for up to 32 bits; else
    chunked.

    Raises:
        ValueError: no backend has that name.
    """
    if name == "auto":
        return "triton" if dtype != torch.float64 and _runs_triton(device) else "chunked"
    if name not in NAMES:
        raise ValueError(
            f"backend = {name!r} is unknown: choose 'auto' or one of {', '.join(map(repr, NAMES))} (device {device})."
        )
    return name


@functools.cache
def resolve_backend(name: str) -> Backend:
    """The differentiable backend of a name that `backend_name` returned."""
    return eager.BACKEND if name == "eager" else backend_of(resolve_engine(name))
