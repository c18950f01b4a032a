"""The backends by name, and the choice `auto` makes. A new backend is one engine and one line here."""

from __future__ import annotations

import functools

import torch

from . import chunked, reference
from .fused import backend_of
from .plan import Backend, Engine

NAMES = ("eager", "chunked", "triton")


@functools.cache
def resolve_engine(name: str) -> Engine:
    """The engine behind a fused backend; Triton is imported when first asked for."""
    if name == "triton":
        from . import triton

        return triton.ENGINE
    return chunked.ENGINE


@functools.cache
def _backend(name: str) -> Backend:
    return reference.BACKEND if name == "eager" else backend_of(resolve_engine(name))


def backend_name(name: str, device: torch.device, dtype: torch.dtype) -> str:
    """`name` itself, or what "auto" means: Triton on CUDA and ROCm for up to 32 bits, else chunked.

    Raises:
        ValueError: no backend has that name.
    """
    if name == "auto":
        return "triton" if device.type == "cuda" and dtype != torch.float64 else "chunked"
    if name not in NAMES:
        raise ValueError(f"backend = {name!r} is unknown: choose 'auto' or one of {', '.join(map(repr, NAMES))} (device {device}).")
    return name


def resolve_backend(name: str, device: torch.device, dtype: torch.dtype) -> Backend:
    """The differentiable backend called `name` (see `backend_name`)."""
    return _backend(backend_name(name, device, dtype))
