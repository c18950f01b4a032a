"""Makes Triton's interpreter right in bf16.

As shipped, its dot multiplies the raw bits and its rounding truncates. Triton 3.6's also fails
under NumPy 2.4 and newer.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl

ACTIVE: bool = triton.knobs.runtime.interpret  # read once: kernels are bound to one mode when they are defined


def _to_float(handle: Any) -> np.ndarray:
    return (handle.data.astype(np.uint32) << 16).view(np.float32)


def _to_bfloat16(data: np.ndarray) -> np.ndarray:
    """Round to nearest even, as the hardware does."""
    rounded = torch.from_numpy(np.ascontiguousarray(data)).to(torch.bfloat16)
    return rounded.view(torch.int16).numpy().view(np.uint16).reshape(data.shape)


@functools.cache
def repair() -> None:
    """Replace the interpreter's bf16 dot, its bf16 cast, and how it reads a scalar as an index.

    Nothing outside the interpreter changes, and a second call does nothing.
    """
    from triton.runtime import interpreter

    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    dot, cast, patch_tensor = builder.create_dot, builder.cast_impl, interpreter._patch_lang_tensor

    def create_dot(self: Any, a: Any, b: Any, d: Any, *args: Any) -> Any:
        if a.dtype.scalar == tl.bfloat16:
            return handle(np.matmul(_to_float(a), _to_float(b)) + d.data, d.dtype.scalar)
        return dot(self, a, b, d, *args)

    def cast_impl(self: Any, src: Any, dst_type: Any) -> Any:
        if src.dtype.scalar == tl.float32 and dst_type.scalar == tl.bfloat16:
            return handle(_to_bfloat16(src.data), dst_type.scalar)
        return cast(self, src, dst_type)

    def patch_lang_tensor(tensor: Any, scope: Any) -> None:
        # A scalar is an array of one element, and int() of such an array, which Triton 3.6 takes
        # for the bounds of a range, is an error from NumPy 2.4 on.
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    builder.create_dot, builder.cast_impl = create_dot, cast_impl
    interpreter._patch_lang_tensor = patch_lang_tensor
