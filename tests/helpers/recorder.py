"""What a piece of code allocates and runs, one ATen call at a time."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Recorder(TorchDispatchMode):
    """Collects the shape of every tensor with memory of its own, and of every matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []
        self.products: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        known = {x.untyped_storage().data_ptr() for x in inputs}
        out = func(*args, **(kwargs or {}))
        outputs = [x for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        self.shapes += [tuple(x.shape) for x in outputs if x.untyped_storage().data_ptr() not in known]
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm_, torch.ops.aten.addmm):
            self.products += [tuple(x.shape) for x in outputs]
        return out

    def largest(self) -> int:
        return max(torch.Size(shape).numel() for shape in self.shapes)
