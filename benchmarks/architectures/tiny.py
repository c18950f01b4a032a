"""Any causal LM of transformers, made tiny: one table of sizes by field, and a few exceptions."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

MODEL_TYPES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
LORA = "+lora"  # behind a model type: with adapters in every linear layer but the head
ADAPTED = tuple(name + LORA for name in ("llama", "gemma2", "qwen3", "gpt2", "granitemoe", "cohere"))
V = 48
FIRST_WORD = 8  # ids below are those of special tokens

_NAMES = {
    V: """vocab_size decoder_vocab_size vocab_size_per_layer_input unpadded_vocab_size vocab_offset
        encoder_hash_byte_group_vocab""",
    32: """hidden_size d_model n_embd dim embed_dim embedding_size embedding_dim input_embedding_size
        output_embedding_size word_embed_proj_dim emb_dim attention_hidden_size lru_width hidden_size_global
        out_hidden_size input_size backbone_hidden_size pronunciation_embed_dim shape_embed_dim
        intermediate_size ffn_dim ffn_hidden_size decoder_ffn_dim encoder_ffn_dim n_inner dff dim_ff d_inner d_ff
        feed_forward_size moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size
        shared_intermediate_size intermediate_size_mlp moe_shared_expert_intermediate_size
        dense_intermediate_size shared_experts_intermediate_size ple_embed_dim mamba_d_ssm""",
    2: """num_hidden_layers n_layer n_layers num_layers num_blocks decoder_layers encoder_layers num_decoder_layers
        num_encoder_layers num_key_value_heads num_kv_heads kv_n_heads num_experts_per_tok num_experts_per_token
        moe_topk moe_k moe_top_k top_k_experts depth n_groups mamba_n_groups mamba_ngroups n_mamba_heads o_groups
        n_input_layers n_recurrent_layers n_output_layers num_layers_per_stack swa_num_key_value_heads
        linear_num_key_heads moe_num_shared_experts conf_num_hidden_layers index_topk layers vision_layers
        num_global_layers""",
    4: """num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads attention_heads
        num_encoder_attention_heads num_decoder_attention_heads num_experts n_routed_experts num_local_experts
        moe_num_experts mamba_n_heads mamba_num_heads linear_num_value_heads linear_num_heads index_n_heads
        conf_num_attention_heads swa_num_attention_heads zero_expert_num laurel_rank hc_lowrank gated_norm_rank
        d_rel loop_gate_rank adapter_rank time_step_rank mamba_dt_rank rotary_dim""",
    8: """head_dim dim_head kv_channels d_head d_kv v_head_dim qk_nope_head_dim qk_rope_head_dim linear_key_head_dim
        linear_value_head_dim linear_head_dim attention_head_size swa_head_dim global_head_dim index_head_dim
        mamba_d_head mamba_head_dim mamba_headdim mamba_d_state state_size ssm_state_size kv_lora_rank q_lora_rank
        o_lora_rank hidden_size_per_layer_input chunk_size mamba_chunk_size router_hidden_size
        ngram_vocab_size_base""",
    64: """max_position_embeddings n_positions n_ctx max_seq_len model_max_length context_length max_target_positions
        max_source_positions original_max_position_embeddings""",
    1: """num_nextn_predict_layers first_k_dense_replace topk_group n_group n_shared_experts num_expert_group
        num_dense_layers num_shared_experts patch_merge split_ngram_parts
        make_ngram_vocab_size_divisible_by""",
    0: "num_kv_shared_layers",
}
# Where a fresh model would have the neutral value, one that shows.
_FACTORS = {
    "initializer_range": 0.2,
    "init_std": 0.2,
    "logit_scale": 0.25,
    "logits_scaling": 4.0,
    "lm_head_multiplier": 0.5,
    "final_logit_softcapping": 1.0,
    "logits_soft_cap": 1.0,
    "output_logit_soft_cap": 1.0,
}
SIZES: dict[str, Any] = {name: size for size, names in _NAMES.items() for name in names.split()} | _FACTORS
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

_HYBRID = {"num_hidden_layers": 4, "attention_hidden_size": 64, "layers_block_type": ["linear_attention", "hybrid"] * 2}
# model type: fields beside those of SIZES, and why
EXCEPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "bamba": ({"mamba_d_head": 16}, "mamba heads x their size = twice the hidden size"),
    "cohere_compass_text": (
        {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
        "its default has no rope parameters for its own layers",
    ),
    "dbrx": ({"attn_config": {"rope_theta": 1e4, "clip_qkv": 8}}, "its defaults do not run"),
    "dory": ({"num_hidden_layers": 6}, "input, recurrent and output layers add up"),
    "gpt_neo": ({"attention_types": [[["global", "local"], 1]]}, "a kind for each layer"),
    "granitemoehybrid": ({"mamba_d_head": 16}, "mamba heads x their size = twice the hidden size"),
    "lfm2_moe": ({"layer_types": ["conv", "full_attention"]}, "its default has none"),
    "mamba2": ({"head_dim": 16}, "heads x their size = twice the hidden size"),
    "reformer": (
        {"axial_pos_embds_dim": [16, 16], "axial_pos_shape": [8, 8]},
        "axial embeddings add up to the hidden size",
    ),
    "xlm": ({"causal": True}, "its default sees later tokens"),
    "xmod": ({"default_language": "en_XX"}, "its adapters want a language"),
    "zamba": (_HYBRID, "it shares a block between two layers"),
    "zamba2": ({**_HYBRID, "hybrid_layer_ids": [1, 3], "mamba_headdim": 32}, "it shares a block between two layers"),
    "zaya": ({"num_experts_per_tok": 1}, "the only number that it takes"),
}


def config_of(model_type: str) -> PreTrainedConfig:
    """The config of a model type, every part of it small."""
    changes, _ = EXCEPTIONS.get(model_type, ({}, ""))
    return _small(CONFIG_MAPPING[model_type](), {"is_decoder": True, **changes})


def _small(default: PreTrainedConfig, changes: dict[str, Any]) -> PreTrainedConfig:
    found: dict[str, Any] = {}
    for name, value in vars(default).items():
        if isinstance(value, PreTrainedConfig):
            found[name] = _small(value, changes.get(name, {}))
        elif name in changes:
            continue
        elif name in SIZES and (value is None or isinstance(value, (int, float, list))):
            found[name] = SIZES[name]
        elif name.endswith(("_token_id", "_token_index")) and isinstance(value, (int, list)):
            found[name] = SPECIAL.get(name, 3)
    if "kv_lora_rank" in found:  # latent attention has a key for every head
        found["num_key_value_heads"] = SIZES["num_attention_heads"]
    return type(default)(**{**changes, **found})


def tiny_model(name: str) -> nn.Module:
    """A fresh model of a type in fp32 whose parameters all do something: biases are not zero."""
    torch.manual_seed(0)
    config = config_of(name.removesuffix(LORA))
    # Experts in a loop: grouped products do not know float64.
    kinds = {"attn_implementation": "eager", "experts_implementation": "eager"}
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, **kinds)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    return (with_adapters(model) if name.endswith(LORA) else model).float().eval()


def with_adapters(model: nn.Module) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(target_modules="all-linear", r=2, init_lora_weights=False))
