"""Checks of what the head multiplies: types, shapes, dtypes and devices, known on the host."""

from __future__ import annotations

from torch import Tensor

from ..head import Operands

# The operands by the names that a caller gives them, and which part of a layer each is.
PARTS = {
    "hidden": "its last_hidden_state, [N, D]",
    "weight": "its weight, [V, D], and put its bias into Head(bias=...)",
    "Head.bias": "its bias, [V]",
    "Head.low_rank.hidden": "its output, [N, r]",
    "Head.low_rank.weight": "its weight, [V, r]",
}


def check_operands(operands: Operands) -> None:
    """Refuse operands that do not fit each other, or that no engine takes."""
    hidden, weight, bias, low_hidden, low_weight = operands
    for (name, part), tensor in zip(PARTS.items(), operands, strict=True):
        if tensor is not None or name in ("hidden", "weight"):
            check_tensor(name, tensor, part)
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"Head.bias has shape {tuple(bias.shape)}; it must be [V] = ({weight.shape[0]},).")
    for name, tensor in zip(PARTS, operands, strict=True):
        if tensor is None:
            continue
        if type(tensor).__name__ == "DTensor":
            # A plain full_tensor() takes every process's gradient for the whole one.
            shard = (
                " Or leave the weight where it is: weight.to_local() with "
                "Head(shard=gft_kernels.parallel.VocabularyShard.of(weight))."
            )
            raise TypeError(
                f"{name} is a DTensor, a shard: pass, anew in every step, {name}.full_tensor() where the processes "
                f"hold the same data (tensor parallelism), and {name}.full_tensor(grad_placements=[Partial('avg')]) "
                f"where each holds its own (FSDP2).{shard if name == 'weight' else ''}"
            )
        check_dtype(name, tensor)
        if tensor.device != hidden.device:
            raise ValueError(f"{name} is on {tensor.device} but hidden is on {hidden.device}: move them to one device.")
    if hidden.ndim != 2:
        raise ValueError(
            f"hidden has shape {tuple(hidden.shape)}; it must be [N, D]. Flatten batch and time: hidden.flatten(0, -2)."
        )
    if weight.ndim != 2 or weight.numel() == 0:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}; it must be [V, D] and not empty. Where ZeRO-3 or FSDP has "
            "sharded it, call logits_policy_loss on the logits of model(...), whose forward gathers it and reduces "
            "its gradient."
        )
    if hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"hidden is {tuple(hidden.shape)} and weight {tuple(weight.shape)}: their last dimension D must agree."
        )
    if low_hidden is not None and low_weight is not None:
        shapes, rank = (tuple(low_hidden.shape), tuple(low_weight.shape)), low_hidden.shape[-1:]
        if shapes != ((len(hidden), *rank), (len(weight), *rank)) or rank == (0,):
            raise ValueError(
                f"Head.low_rank has hidden {shapes[0]} and weight {shapes[1]}; they must be [N, r] and [V, r], with "
                f"N = {len(hidden)}, V = {len(weight)} and one rank r > 0. For LoRA they are scaling * dropout(x) @ "
                "lora_A.T and lora_B."
            )


def check_tensor(name: str, given: object, part: str) -> None:
    """Refuse a layer, or a model's output, in place of the tensor that it holds."""
    if not isinstance(given, Tensor):
        raise TypeError(f"{name} is {type(given).__name__}, not a tensor: pass {part}.")


def check_dtype(name: str, tensor: Tensor) -> None:
    if not tensor.is_floating_point() or tensor.element_size() < 2:
        has = "have" if name == "logits" else "has"
        raise TypeError(f"{name} {has} dtype {tensor.dtype}: float64, float32, float16 and bfloat16 are supported.")
