"""Gradients of policies with Liger's layers and without, as JSON: how far they are apart.

python -m tests.gft.liger: a process of its own, in which Triton interprets its kernels.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from ..integrations.liger import kernels_used, let_kernels_run  # isort: skip  # sets TRITON_INTERPRET

import torch
from safetensors.torch import load_file
from transformers.models.llama import modeling_llama

from gft.checkpoint import save_model
from gft.policy import Policy

from .test_layers import gradients_of, policy_of

NETWORKS: dict[str, dict] = {"plain": {}, "lora and checkpointing": {"lora": 2, "checkpointing": True}}


def unlike_zero(policy: Policy) -> Policy:
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, p in policy.model.named_parameters():
            if "lora_B" in name:
                p.copy_(torch.randn(p.shape, generator=g) / 4)
    return policy


def main() -> None:
    found: dict[str, object] = {}
    wanted = {name: gradients_of(unlike_zero(policy_of("llama", **network))) for name, network in NETWORKS.items()}
    rotary = modeling_llama.apply_rotary_pos_emb
    for name, network in NETWORKS.items():
        policy = unlike_zero(policy_of("llama", liger=True, **network))
        (loss, grads), (reference_loss, references) = gradients_of(policy), wanted[name]
        assert grads.keys() == references.keys()
        errors = [((g - references[n]).abs().max() / references[n].abs().max()).item() for n, g in grads.items()]
        found[name] = (max(*errors, abs(loss - reference_loss)), sorted(kernels_used(policy.model)))
    found["rotary"] = modeling_llama.apply_rotary_pos_emb is not rotary
    with TemporaryDirectory() as folder:
        saved = load_file(save_model(policy, Path(folder) / "model") / "model.safetensors")
    found["saved"] = sorted(saved) == sorted(policy_of("llama").model.state_dict())
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    let_kernels_run()
    torch.set_num_threads(1)
    main()
