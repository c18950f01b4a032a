"""Sums of the operands' gradients over chunks of rows.

They are fp32 (fp64 for fp64 inputs) and rounded once, at the end.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..head import Operands
from ..parallel import VocabularyShard

Index = slice | Tensor
Wanted = tuple[bool, ...]  # whether the gradient of each of Operands is wanted
HALVES = (torch.float16, torch.bfloat16)
# fp16 gradients are held at this multiple of the largest upstream value, above the subnormals and
# below 65504.
FP16_RANGE = 256.0


def compute_dtype(*operands: Tensor) -> torch.dtype:
    """Dtype of logits, statistics and sums: fp64 if an operand is, else fp32."""
    return torch.float64 if any(x.dtype == torch.float64 for x in operands) else torch.float32


def unit_of(dtype: torch.dtype, weights: Tensor, advantages: Tensor | None = None) -> Tensor | None:
    """The power of two that fp16 gradients are multiples of, or None for every other dtype.

    It follows the largest |weight * advantage|.
    """
    if dtype != torch.float16:
        return None
    weights = weights if advantages is None else weights * advantages
    top = weights.abs().amax() if weights.numel() else weights.new_zeros(())
    return torch.where(top > 0, torch.exp2(torch.ceil(torch.log2(top))) / FP16_RANGE, 1.0)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a @ b, accumulated and returned in fp32 where the operands have 16 bits."""
    if a.dtype not in HALVES:
        return a @ b
    if a.device.type != "cuda":
        return a.float() @ b.float()
    return torch.mm(a, b, out_dtype=torch.float32) if _widens(a.dtype, a.device) else (a @ b).float()


def add_matmul(total: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """total + a @ b, in place and in total's precision. Where total is None it is a @ b."""
    if total is None:
        return matmul(a, b)
    if a.dtype not in HALVES:
        return total.addmm_(a, b)
    if a.device.type == "cuda" and _adds_in_place(a.dtype, a.device):
        return torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
    for at in range(0, len(total), 8192):  # in slices, because the product must not cost a second dweight
        total[at : at + 8192] += matmul(a[at : at + 8192], b)
    return total


@functools.cache
def _widens(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a GEMM of 16-bit operands can return its fp32 sums.

    Where it cannot, they are rounded to 16 bits once a chunk.
    """
    a = torch.eye(16, dtype=dtype, device=device)
    try:
        return torch.mm(a, a, out_dtype=torch.float32).dtype == torch.float32
    except (RuntimeError, TypeError):
        return False


@functools.cache
def _adds_in_place(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether this torch adds a product of 16 bits to an fp32 matrix in one GEMM.

    Some releases demand a 16-bit addend.
    """
    a, total = torch.eye(16, dtype=dtype, device=device), torch.ones(16, 16, device=device)
    try:
        torch.addmm(total, a, a, out_dtype=torch.float32, out=total)
    except (RuntimeError, TypeError):
        return False
    return bool((total == 1 + a).all())


class Rows(NamedTuple):
    """What is known of a chunk's rows, for those who leave parts of the chunk out."""

    targets: Tensor  # [K]
    upstream: Tensor  # [K] d loss / d log p, in multiples of the gradients' unit
    logprobs: Tensor  # [K]

    def sizes(self) -> Tensor:
        """[K] sum of the row's |dz| off the target, which no entry of the row exceeds."""
        return torch.where(self.upstream == 0, 0, self.upstream.abs() * -torch.expm1(self.logprobs))


class ChunkGradient(NamedTuple):
    """The logit gradient of one chunk of rows: dz = factor[:, None] * grad.

    The factor stays on the [K, D] side of both gradient GEMMs. Logits are slope * raw logits of the
    operands.
    """

    row_index: Index  # [K] among the N rows
    operands: Operands  # hidden [K, D], in the dtype of the GEMMs
    grad: Tensor  # [K, V]
    factor: Tensor | None  # [K], None is 1
    slope: float
    rows: Rows | None = None


class Products(NamedTuple):
    """grad @ weight [K, D] and grad @ low_weight [K, r], None where not wanted."""

    hidden: Tensor | None
    low_hidden: Tensor | None


class Gradients:
    """What the chunks' logit gradients add up to. What nobody wants is never allocated.

    The sums are multiples of `unit` (None is 1), which keeps fp16 operands in range. With a `shard`
    of the vocabulary, those of the hidden states are summed over its ranks too, once, as they are
    handed over.
    """

    def __init__(
        self, operands: Operands, wanted: Wanted, unit: Tensor | None = None, shard: VocabularyShard | None = None
    ) -> None:
        self.wanted = tuple(want and x is not None for want, x in zip(wanted, operands, strict=True))
        self.unit, self.shard = unit, shard
        self.dtype = compute_dtype(*operands[:2])
        self.hidden = self._zeros_of(operands.hidden) if self.wanted[0] else None
        self.weight: Tensor | None = None  # [V, D], made by the first chunk
        self.bias: Tensor | None = None  # [V, 2], likewise: high and low part
        self.low_hidden = self._zeros_of(operands.low_hidden) if self.wanted[3] else None
        self.low_weight: Tensor | None = None  # [V, r], likewise

    def _zeros_of(self, x: Tensor | None) -> Tensor:
        assert x is not None
        return torch.zeros(x.shape, dtype=self.dtype, device=x.device)

    def add(self, chunk: ChunkGradient) -> Products:
        """Add one chunk. Returns the products that it formed."""
        _, (hidden, weight, _, low_hidden, low_weight), grad, factor, slope, _ = chunk
        products = Products(
            self._set_rows(self.hidden, chunk, weight), self._set_rows(self.low_hidden, chunk, low_weight)
        )
        if self.wanted[1]:
            self.weight = self._add_columns(self.weight, chunk, hidden)
        if self.wanted[4]:
            self.low_weight = self._add_columns(self.low_weight, chunk, low_hidden)
        if self.wanted[2]:
            column = grad.new_full((len(grad),), slope, dtype=self.dtype) if factor is None else factor * slope
            high = column.to(grad.dtype)
            # A 16-bit factor would be off by a rounding, so its remainder travels beside it.
            low = (column - high).to(grad.dtype)
            self.bias = add_matmul(self.bias, grad.T, torch.stack((high, low), 1))
        return products

    def _set_rows(self, total: Tensor | None, chunk: ChunkGradient, weight: Tensor | None) -> Tensor | None:
        """The chunk's rows of `total` become dz @ weight. Returns grad @ weight."""
        if total is None or weight is None:
            return None
        product, slope = matmul(chunk.grad, weight), chunk.slope
        total[chunk.row_index] = product * slope if chunk.factor is None else product * (chunk.factor * slope)[:, None]
        return product

    def _add_columns(self, total: Tensor | None, chunk: ChunkGradient, hidden: Tensor | None) -> Tensor:
        """total + dz.T @ hidden."""
        assert hidden is not None
        factor, slope = chunk.factor, chunk.slope
        right = torch.empty_like(hidden, memory_format=torch.contiguous_format)
        torch.mul(hidden, slope if factor is None else (factor * slope)[:, None], out=right)
        return add_matmul(total, chunk.grad.T, right)

    def report(self) -> Tensor | None:
        """What was left out, as numbers, or None where nothing can be."""
        return None

    def sums(self, operands: Operands) -> Iterator[Tensor | None]:
        """The sums of each operand in `dtype`, None where not wanted, let go one by one."""
        for name, x, wanted in zip(Operands._fields, operands, self.wanted, strict=True):
            total = getattr(self, name)
            setattr(self, name, None)
            if x is None or not wanted:
                yield None
            elif total is None:  # no chunk came
                yield self._zeros_of(x)
            elif name in ("hidden", "low_hidden") and self.shard is not None:
                yield self.shard.total(total)
            else:
                yield total.sum(1) if name == "bias" else total

    def finish(self, grad_loss: Tensor | None, operands: Operands) -> tuple[Tensor | None, ...]:
        """The gradients times grad_loss in their operands' dtypes, rounded once."""
        scale = self.unit if grad_loss is None else grad_loss if self.unit is None else grad_loss * self.unit
        dtypes = [None if x is None else x.dtype for x in operands]
        pairs = zip(self.sums(operands), dtypes, strict=True)
        return tuple(None if dtype is None else scaled(total, scale, dtype) for total, dtype in pairs)


def scaled(total: Tensor | None, scale: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """total * scale in `dtype`, rounded once after the product, in place where possible."""
    if total is None:
        return None
    if total.dtype == dtype:
        return total if scale is None else total.mul_(scale)
    if scale is None:
        return total.to(dtype)
    return torch.mul(total, scale, out=torch.empty_like(total, dtype=dtype))
