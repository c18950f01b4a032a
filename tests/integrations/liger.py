"""The fused loss of a Llama with kernels of Liger, as JSON: its worst error, or what is refused.

python -m tests.integrations.liger: a process of its own, since Liger changes transformers' modules.
"""

from __future__ import annotations

import json
import os
import sys

os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

import numpy as np
import torch
import triton.language as tl
from liger_kernel.transformers import apply_liger_kernel_to_llama
from torch import nn
from transformers import TrainingArguments
from transformers.integrations.liger import apply_liger_kernel
from triton.runtime import interpreter

from gft_kernels import gft
from gft_kernels.engines.triton.interpreter import repair
from gft_kernels.integrations.hf import PolicyBatch, fuse_loss

from .models import tokens, untrained

HEADS = {"cross_entropy": False, "fused_linear_cross_entropy": False}
LAYERS = {"rope": True, "rms_norm": True, "swiglu": True}
NO_LAYERS = dict.fromkeys(LAYERS, False)


def let_kernels_run() -> None:
    """Where Triton's interpreter differs from what compiled kernels get."""
    repair()
    sys.modules["liger_kernel.ops.rms_norm"].rsqrt = lambda x: tl.rsqrt(x)  # in place of CUDA's library
    convert = interpreter._implicit_cvt

    def converted(arg: object) -> object:
        if isinstance(arg, float):  # an fp32 scalar, and not Python's
            return tl.tensor(interpreter.TensorHandle(np.array(arg, np.float32), tl.float32), tl.float32)
        return convert(arg)

    interpreter._implicit_cvt = converted


def model(liger: dict[str, bool] | None = None) -> nn.Module:
    """With the same weights whatever its layers are; `liger` is put into the instance."""
    made = untrained("llama").train()  # Liger's own loss is computed in training only
    if liger is not None:
        apply_liger_kernel(made, liger)
    return made


def kernels_used(made: nn.Module) -> set[str]:
    named = {type(m).__name__ for m in made.modules()} | {str(vars(m).get("forward")) for m in made.modules()}
    return {kind for kind in ("LigerRMSNorm", "LigerSwiGLUMLP") if any(kind in name for name in named)}


def error(made: nn.Module) -> float:
    """Of log-probs, and of every gradient relative to its largest entry, against own logits."""
    ids, targets = tokens(), tokens()[:, 1:]
    advantages = torch.linspace(-1, 1, targets.numel()).view(targets.shape)
    found = made(input_ids=ids, policy_batch=PolicyBatch(targets, gft(0.03), advantages))
    found.loss.backward()
    got = {name: p.grad.clone() for name, p in made.named_parameters()}
    made.zero_grad()
    lp = made(input_ids=ids).logits[:, :-1].log_softmax(-1).gather(2, targets[..., None]).squeeze(2)
    gft(0.03)(lp, advantages=advantages).mean().backward()
    errors = [((got[n] - p.grad).abs().max() / p.grad.abs().max()).item() for n, p in made.named_parameters()]
    return max(*errors, (found.logprobs - lp).abs().max().item())


def refusal(call: object) -> str:
    try:
        call()
    except Exception as refused:
        return f"{type(refused).__name__}: {refused}"
    return "not refused"


def instances() -> dict[str, object]:
    """Kernels put into a model that is there, as transformers' Trainer does it."""
    fused = fuse_loss(model())
    arguments = TrainingArguments(use_liger_kernel=True, use_cpu=True, report_to="none").liger_kernel_config
    before = fuse_loss(model({**LAYERS, **HEADS}))
    after = fuse_loss(model())
    apply_liger_kernel(after, {**LAYERS, **HEADS})
    return {
        "layers of an instance": (error(before), sorted(kernels_used(before))),
        "layers of a fused instance": (error(after), sorted(kernels_used(after))),
        "loss of a fused instance": refusal(lambda: apply_liger_kernel(fused, arguments)),
        "loss of an instance": refusal(lambda: fuse_loss(model(NO_LAYERS))),
    }


def classes() -> dict[str, object]:
    """Kernels in transformers' module: every Llama made from now on has them."""
    apply_liger_kernel_to_llama(**LAYERS, **HEADS)
    layers = fuse_loss(model())
    found: dict[str, object] = {"layers": (error(layers), sorted(kernels_used(layers)))}
    apply_liger_kernel_to_llama(**LAYERS)  # and their loss in the model's forward
    whole = fuse_loss(model())
    assert type(whole)._had.forward.__module__.startswith("liger_kernel")
    batch = PolicyBatch(tokens()[:, 1:], gft(), torch.ones(2, 6))
    found["layers and loss"] = (error(whole), sorted(kernels_used(whole)))
    found["labels too"] = refusal(lambda: whole(input_ids=tokens(), labels=tokens(), policy_batch=batch))
    return found


if __name__ == "__main__":
    let_kernels_run()
    torch.set_num_threads(1)
    json.dump({**instances(), **classes()}, sys.stdout)
