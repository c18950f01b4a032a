"""A fused model against the formula on its own logits: loss, log-probs and every gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gft_kernels import Backend, gft
from gft_kernels.integrations.hf import PolicyBatch, fuse_loss

from .tiny import FIRST_WORD, V, tiny_model

EXACT = 1e-5
NOISE = 1e-6  # of the model's largest gradient: a gradient that is zero in exact arithmetic is smaller
OBJECTIVE = gft(0.03)  # tau is about 1 / V, so that both branches of C are taken


def measure(model_type: str) -> dict[str, Any]:
    """The columns of one model type, from its class to the reason.

    Whatever it raises is a fault: of a fused model, or of this comparison.
    """
    ids, batch = example()
    try:
        model = tiny_model(model_type)
        gradients(model, own_loss(model, ids, batch)[0])
    except Exception as error:
        return {"status": "not built", "reason": first_line(error)}
    row: dict[str, Any] = {"class": type(model).__name__, "parameters": sum(p.numel() for p in model.parameters())}
    try:
        fuse_loss(model, backend=Backend(skip_rows=False))
        model(input_ids=ids, use_cache=False, policy_batch=batch)
    except (TypeError, ValueError) as error:
        return {**row, "status": "refused", "reason": first_line(error)}
    head = model._fused.head
    row |= {"scale": head.scale, "softcap": head.softcap or "", "tied": is_tied(model), "dtype": "float32"}
    error, where = worst_error(model, ids, batch)
    if error > EXACT:  # rounding, or a difference? Only a difference is left in float64
        error, where = worst_error(model.double(), ids, batch)
        row["dtype"] = "float64"
    exact = error <= EXACT
    return {**row, "status": "exact" if exact else "wrong", "error": f"{error:.0e}", "reason": "" if exact else where}


def example() -> tuple[Tensor, PolicyBatch]:
    """Random tokens [3, 8], a third of them masked, with advantages and weights of every token."""
    g = torch.Generator().manual_seed(1)
    ids = torch.randint(FIRST_WORD, V, (3, 8), generator=g)
    targets = ids[:, 1:].clone()
    targets[torch.rand(targets.shape, generator=g) < 0.3] = -100
    advantages, weights = torch.randn(targets.shape, generator=g), torch.rand(targets.shape, generator=g)
    return ids, PolicyBatch(targets, OBJECTIVE, advantages, token_weights=weights)


def worst_error(model: nn.Module, ids: Tensor, batch: PolicyBatch) -> tuple[float, str]:
    """The largest error of the loss, the log-probs and any parameter's gradient, and where it is.

    An error is relative to the largest entry of what it is an error of.
    """
    found = model(input_ids=ids, use_cache=False, policy_batch=batch)
    got = gradients(model, found.loss)
    loss, logprobs = own_loss(model, ids, batch)
    want = gradients(model, loss)
    valid = batch.targets != -100
    errors = {
        "the loss": relative(found.loss, loss),
        "log-probs": relative(found.logprobs[valid], logprobs[valid]),
    }
    noise = NOISE * max(gradient.abs().max().item() for gradient in want.values())
    for name in want.keys() | got.keys():
        ours, theirs = (side.get(name, torch.zeros(())) for side in (got, want))
        if max(ours.abs().max().item(), theirs.abs().max().item()) > noise:
            errors[f"the gradient of {name}"] = relative(ours, theirs)
    where = max(errors, key=lambda name: errors[name] if errors[name] == errors[name] else float("inf"))
    return errors[where], where


def own_loss(model: nn.Module, ids: Tensor, batch: PolicyBatch) -> tuple[Tensor, Tensor]:
    """Loss and log-probs [B, T-1] of the formula on the model's own logits."""
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    logprobs = logits.log_softmax(-1).gather(2, batch.targets.clamp(min=0)[..., None]).squeeze(2)
    per_token = OBJECTIVE(logprobs, advantages=batch.advantages)
    return (batch.token_weights * per_token)[batch.targets != -100].sum(), logprobs


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def relative(got: Tensor, want: Tensor) -> float:
    return ((got - want).abs().max() / want.abs().max()).nan_to_num(0.0 if got.equal(want) else torch.inf).item()


def is_tied(model: Any) -> bool:
    embeddings = model.get_input_embeddings()
    return getattr(embeddings, "weight", None) is model.get_output_embeddings().weight


def first_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:600]
