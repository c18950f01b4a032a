"""Tiny models for the tests of integrations, and what their own forward gives."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    BambaConfig,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    Qwen2Config,
    Qwen3MoeConfig,
    RecurrentGemmaConfig,
)

from gft_kernels import linear_policy_loss, sft
from gft_kernels.integrations.hf import HeadParts

V = 31
SIZES = {
    "vocab_size": V,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
EXPERTS = {"num_experts_per_tok": 2, "router_aux_loss_coef": 0.02}
CONFIGS = {
    "llama": LlamaConfig(**SIZES),  # untied head, nothing more
    "qwen2-tied": Qwen2Config(**SIZES, tie_word_embeddings=True),
    "gemma2-softcap": Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=0.5),
    # A cap so high that no fresh model's logits come near it.
    "recurrent-gemma-softcap": RecurrentGemmaConfig(**{**SIZES, "num_hidden_layers": 3}, lru_width=16),
    "granite-divides": GraniteConfig(**SIZES, logits_scaling=4.0),
    "cohere-multiplies": CohereConfig(**SIZES, logit_scale=0.25),
    "gpt2": GPT2Config(vocab_size=V, n_embd=16, n_layer=1, n_head=2, bos_token_id=2, eos_token_id=1),
    "mixtral": MixtralConfig(**SIZES, **EXPERTS, num_local_experts=4),
    "qwen3-moe": Qwen3MoeConfig(**SIZES, **EXPERTS, num_experts=4, moe_intermediate_size=16, head_dim=8),
    "bamba": BambaConfig(**SIZES, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8, attn_layer_indices=[0]),
}


class Output:
    """What a forward gives, its fields empty until they are set."""

    loss = logits = last_hidden_state = None


def untrained(name: str = "llama", **changes: object) -> nn.Module:
    """A fresh causal LM, some fields of its config changed."""
    torch.manual_seed(0)
    config = type(CONFIGS[name])(**{**CONFIGS[name].to_dict(), **changes})
    return AutoModelForCausalLM.from_config(config).eval()


def llama() -> LlamaForCausalLM:
    return untrained("llama")


def tokens() -> Tensor:  # [2, 7]
    return torch.randint(3, V, (2, 7), generator=torch.Generator().manual_seed(1))


def nll_gradients(model: nn.Module, parts: HeadParts | None) -> dict[str, Tensor]:
    """Gradients of the mean NLL, from the parts, or from the model's own logits."""
    model.zero_grad()
    ids = tokens()
    targets = ids[:, 1:].flatten()
    if parts is None:
        loss = nn.functional.cross_entropy(model(input_ids=ids).logits[:, :-1].flatten(0, 1), targets)
    else:
        hidden = parts.backbone(input_ids=ids).last_hidden_state[:, :-1].flatten(0, 1)
        loss = linear_policy_loss(hidden, parts.weight, targets, objective=sft(), head=parts.head).loss
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
