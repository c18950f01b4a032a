"""The correctness gate: a provider is timed only if its loss and gradients are near fp64's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gft_kernels import Backend, gft, linear_policy_loss

from ..heads.ours import Provider
from ..inputs.cases import TAU, Batch

GATE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
SPARSE_GATE = 5e-3  # in fp32: what 1e-3 of the logits' gradient may become in dhidden
GATE_ROWS = 512


@dataclass
class Found:
    """A loss and its gradients.

    `size` is the sum of the absolute values of the loss's terms: a loss error is relative to it.
    """

    loss: Tensor
    dhidden: Tensor  # [N, D]
    dweight: Tensor  # [V, D]
    size: float = 1.0

    def errors(self, expected: Found) -> dict[str, float]:
        """Relative errors of the loss and of the two gradients, as norms."""
        gradients = ((self.dhidden, expected.dhidden), (self.dweight, expected.dweight))
        dh, dw = (((a.double() - b.double()).norm() / b.double().norm()).item() for a, b in gradients)
        return {
            "loss_error": (self.loss.double() - expected.loss).abs().item() / expected.size,
            "dh_error": dh,
            "dw_error": dw,
        }


def step(provider: Provider, batch: Batch) -> Found:
    """One forward and backward."""
    leaves = batch.leaves()
    loss = provider(leaves)
    loss.backward()
    assert leaves.hidden.grad is not None
    assert leaves.weight.grad is not None
    return Found(loss.detach(), leaves.hidden.grad, leaves.weight.grad)


def oracle(batch: Batch) -> Found:
    """Eager logits in fp64."""
    weights, every_row = batch.token_weights.double(), Backend("eager", skip_rows=False)
    sizes: list[float] = []

    def provider(leaves: Batch) -> Tensor:
        operands, advantages = (leaves.hidden.double(), leaves.weight.double()), batch.advantages.double()
        result = linear_policy_loss(
            *operands, batch.targets, advantages, objective=gft(TAU), token_weights=weights, backend=every_row
        )
        sizes.append((weights * result.coefficients * result.logprobs).abs().sum().item())
        return result.loss

    found = step(provider, batch)
    found.size = sizes[0]
    return found


def verdict(name: str, errors: dict[str, float], dtype: torch.dtype) -> str:
    """Why a provider with these errors is not timed; "" where it is."""
    gate = max(GATE[dtype], SPARSE_GATE) if "sparse" in name else GATE[dtype]
    if all(error <= gate for error in errors.values()):  # NaN is not
        return ""
    return f"{', '.join(f'{key} {error:.1e}' for key, error in errors.items())}: over {gate:.0e}, not timed"
