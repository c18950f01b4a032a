"""Makes Triton's interpreter right in bf16: as shipped, its dot multiplies the raw bits and its
rounding truncates.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl

ACTIVE: bool = triton.knobs.runtime.interpret  # read once: kernels are bound to one mode when they are defined


def _to_float(handle):
    return (handle.data.astype(np.uint32) << 16).view(np.float32)


def _to_bfloat16(data: np.ndarray) -> np.ndarray:
    """Round to nearest even, as the hardware does."""
    rounded = torch.from_numpy(np.ascontiguousarray(data)).to(torch.bfloat16)
    return rounded.view(torch.int16).numpy().view(np.uint16).reshape(data.shape)


def repair() -> None:
    """Replace the interpreter's bf16 dot and fp32 -> bf16 cast; nothing outside the interpreter
    changes.
    """
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    dot, cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl

    def create_dot(self, a, b, d, *args):
        if a.dtype.scalar == tl.bfloat16:
            return TensorHandle(np.matmul(_to_float(a), _to_float(b)) + d.data, d.dtype.scalar)
        return dot(self, a, b, d, *args)

    def cast_impl(self, src, dst_type):
        if src.dtype.scalar == tl.float32 and dst_type.scalar == tl.bfloat16:
            return TensorHandle(_to_bfloat16(src.data), dst_type.scalar)
        return cast(self, src, dst_type)

    InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl = create_dot, cast_impl
