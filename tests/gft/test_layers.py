"""Layers in gradient passes: without dropout they are the network that samples, to the bit."""

import copy
import json

import pytest
import torch
from transformers import (
    CTRLConfig,
    CTRLLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
)

from gft.checkpoint import save_model
from gft.demo.base_model import tokenizer
from gft.groups import make_batch
from gft.layers import randomness
from gft.parts import ModelConfig
from gft.policy import configure, make_policy
from gft.rollout import sample
from gft.update import accumulate_gradients
from gft_kernels import gft
from gft_kernels.integrations.hf import PolicyBatch

from .runs import EXAMPLES, config, gradients

IDS = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1, "vocab_size": 29}
LLAMA = IDS | {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
GPT = IDS | {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
# Dropout wherever these classes have it: modules, functions, in attention, whole layers, routers.
MODELS = {
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**LLAMA, num_key_value_heads=2, attention_dropout=0.5)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA, attention_dropout=0.5)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**GPT, resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)),
    "opt": lambda: OPTForCausalLM(
        OPTConfig(
            **(LLAMA | {"ffn_dim": 32, "word_embed_proj_dim": 16, "max_position_embeddings": 64}),
            dropout=0.5,
            attention_dropout=0.5,
            layerdrop=0.5,
        )
    ),
    "mixtral": lambda: MixtralForCausalLM(
        MixtralConfig(
            **LLAMA,
            num_key_value_heads=2,
            num_local_experts=4,
            attention_dropout=0.5,
            router_jitter_noise=0.5,
            output_router_logits=True,
        )
    ),
}


def policy_of(name, **network):
    torch.manual_seed(0)
    return configure(make_policy(MODELS[name]().eval(), tokenizer()), ModelConfig(**network))


def loss_of(policy):
    g = torch.Generator().manual_seed(1)
    tokens = torch.randint(2, 29, (3, 9), generator=g)
    batch = PolicyBatch(tokens[:, 1:], gft(0.03), torch.tensor([1.0, -1.0, 0.5]))
    return policy.loss({"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}, batch)


def gradients_of(policy, seed=0):
    """Loss and gradients of two passes, in the mode of gradient passes."""
    policy.learn()
    torch.manual_seed(seed)
    for _ in range(2):
        found = loss_of(policy)
        (found.loss if found.aux_loss is None else found.loss + found.aux_loss).backward()
    out = {name: p.grad.clone() for name, p in policy.model.named_parameters() if p.grad is not None}
    policy.model.zero_grad()
    return found.loss.item(), out


def assert_equal(one, other):
    assert one[0] == other[0]
    assert one[1].keys() == other[1].keys()
    for name, grad in one[1].items():
        assert torch.equal(grad, other[1][name]), name


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_learn_without_dropout_is_the_network_that_samples(name, checkpointing):
    policy = policy_of(name, checkpointing=checkpointing)
    policy.model.eval()
    wanted = loss_of(policy)
    policy.learn()
    for _ in range(2):
        found = loss_of(policy)
        assert torch.equal(found.logprobs, wanted.logprobs)
        assert torch.equal(found.loss, wanted.loss)


@pytest.mark.parametrize("name", MODELS)
def test_learn_with_dropout_has_the_dropout_of_the_model(name):
    policy = policy_of(name, dropout=True)
    policy.learn()
    assert not torch.equal(loss_of(policy).logprobs, loss_of(policy).logprobs)


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_checkpointing_changes_no_bit_of_a_gradient(name, dropout):
    plain, again = (policy_of(name, dropout=dropout, checkpointing=c) for c in (False, True))
    assert_equal(gradients_of(again), gradients_of(plain))


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_checkpointing_reaches_layers_behind_frozen_embeddings(name):
    policies = [policy_of(name, checkpointing=c) for c in (False, True)]
    for policy in policies:
        policy.model.get_input_embeddings().weight.requires_grad_(False)
    plain, again = (gradients_of(policy) for policy in policies)
    assert any("layers.0" in key for key in again[1])
    assert_equal(again, plain)


@pytest.mark.parametrize("name", MODELS)
def test_checkpointing_computes_layers_again(name):
    """Forwards of a layer's attention or MLP: one in the forward, one more in the backward."""
    policy = policy_of(name, checkpointing=True)
    policy.learn()
    calls = []
    inner = next(m for n, m in policy.model.named_modules() if n.endswith(("self_attn", ".attn")))
    inner.register_forward_hook(lambda *_: calls.append(1))
    loss = loss_of(policy).loss
    assert len(calls) == 1
    loss.backward()
    assert len(calls) == 2
    policy.model.eval()
    with torch.no_grad():
        loss_of(policy)
    assert len(calls) == 3


def test_checkpointing_of_a_copy_works_on_the_copy():
    policy = policy_of("llama", checkpointing=True)
    copied = copy.deepcopy(policy)
    for p in copied.model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    plain = policy_of("llama")
    plain.model.load_state_dict(copied.model.state_dict())
    assert_equal(gradients_of(copied), gradients_of(plain))


def test_accumulate_gradients_is_without_dropout_and_samples_are_as_before(rewards):
    policy = policy_of("gpt2", checkpointing=True)
    batch = make_batch(policy, EXAMPLES[:3], config(), rewards)
    found = []
    for _ in range(2):
        numbers = accumulate_gradients(policy, batch, config())
        found.append((numbers["loss"], gradients(policy)))
        torch.manual_seed(0)
        found[-1] += (sample(policy, [[3, 4]], max_new_tokens=5, temperature=1.0, batch=1)[0].tokens,)
    assert found[0][0] == found[1][0]
    assert found[0][2] == found[1][2]
    assert all(torch.equal(grad, found[1][1][name]) for name, grad in found[0][1].items())


def test_saved_config_keeps_the_dropout_of_the_model(tmp_path):
    policy = policy_of("gpt2")
    policy.learn()
    saved = json.loads((save_model(policy, tmp_path / "model") / "config.json").read_text())
    assert [saved[name] for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop")] == [0.5] * 3


def test_configure_refuses_dropout_of_a_model_without(policy):
    with pytest.raises(ValueError, match="--dropout would do nothing"):
        configure(policy, ModelConfig(dropout=True))
    nested = {"text_config": {"attention_dropout": 0.1, "hidden_dropout": 0.0}, "jitter_noise": 0.1, "drop_path": None}
    assert list(randomness(nested)) == ["text_config.attention_dropout", "jitter_noise"]


def test_configure_refuses_layers_that_cannot_be_computed_again():
    model = CTRLLMHeadModel(CTRLConfig(vocab_size=29, n_embd=16, dff=32, n_layer=2, n_head=2)).eval()
    with pytest.raises(ValueError, match="CTRLLMHeadModel has no layers that can be computed again"):
        configure(make_policy(model, tokenizer()), ModelConfig(checkpointing=True))


@pytest.mark.parametrize("every", [6, 0])
def test_configure_refuses_weights_that_change_with_the_mode(every):
    sizes = {"vocab_size": 29, "hidden_size": 16, "attention_hidden_size": 16, "num_hidden_layers": 2}
    policy = make_policy(RwkvForCausalLM(RwkvConfig(**sizes, rescale_every=every)).eval(), tokenizer())
    if every == 0:
        assert configure(policy, ModelConfig()) is policy
        return
    with pytest.raises(ValueError, match="rescale_every is 6 in the model's config"):
        configure(policy, ModelConfig())
