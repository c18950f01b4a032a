"""A bare model taken apart: its parts are the model itself, or it is refused by name."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import (
    BartConfig,
    BartForCausalLM,
    BertConfig,
    BertForMaskedLM,
    LlamaForSequenceClassification,
    LlamaModel,
    T5Config,
    T5ForConditionalGeneration,
    XLMConfig,
    XLMWithLMHeadModel,
)

from gft_kernels import Head, linear_logprob, linear_policy_loss, sft
from gft_kernels.integrations.hf import split_head

from .models import CONFIGS, V, llama, tokens, untrained


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_split_head_gives_the_models_own_logprobs(name, temperature):
    model = untrained(name)
    parts = split_head(model, temperature=temperature)
    ids = tokens()
    hidden = parts.backbone(input_ids=ids).last_hidden_state[:, :-1].flatten(0, 1)
    targets = ids[:, 1:].flatten()
    found = linear_logprob(hidden, parts.weight, targets, head=parts.head).logprobs
    expected = (model(ids).logits[:, :-1] / temperature).log_softmax(-1).flatten(0, 1)[torch.arange(12), targets]
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    assert parts.weight is model.get_output_embeddings().weight


def test_split_head_sees_a_soft_cap_that_small_logits_hide():
    assert split_head(untrained("recurrent-gemma-softcap")).head.softcap == 30
    model = llama()  # with a cap that no config speaks of, far above its logits
    model.lm_head.register_forward_hook(lambda layer, inputs, logits: 50 * torch.tanh(logits / 50))
    assert model(tokens()).logits.abs().max() < 1
    with pytest.raises(ValueError, match=r"differ from its own by"):
        split_head(model)


def test_split_head_refuses_unknown_transforms():
    model = untrained("granite-divides")
    model.lm_head.register_forward_hook(lambda layer, inputs, logits: 3 * logits)
    with pytest.raises(ValueError, match=r"GraniteForCausalLM: log-probs .* differ .*build Head\(\.\.\.\) by hand"):
        split_head(model)


class Adapted(nn.Linear):
    pass


class Linear4bit(nn.Linear):
    """As bitsandbytes has it: packed numbers, two in a byte."""

    def __init__(self) -> None:
        super().__init__(16, V, bias=False)
        self.weight = nn.Parameter(torch.zeros(V * 8, 1, dtype=torch.uint8), requires_grad=False)


class Int8Tensor(torch.Tensor):
    """As torchao has it: the layer stays nn.Linear and its weight is of another kind."""


def subclassed_weight() -> nn.Linear:
    layer = nn.Linear(16, V, bias=False)
    layer.weight = nn.Parameter(layer.weight.data.as_subclass(Int8Tensor))
    return layer


def recomputed_weight() -> nn.Linear:
    layer = nn.Linear(16, V, bias=False)
    weight = layer.weight.data.clone()
    del layer.weight
    layer.weight = weight  # as weight_norm leaves it: computed anew in every forward
    return layer


HEADS = {
    "adapted": (lambda: Adapted(16, V, bias=False), r"head is Adapted, not nn\.Linear.*Put an nn\.Linear"),
    "4 bit": (Linear4bit, r"head is Linear4bit, not nn\.Linear.*neither quantised nor"),
    "torchao": (subclassed_weight, r"head is Int8Tensor of torch\.float32.*neither quantised nor"),
    "recomputed": (recomputed_weight, r"head is Tensor of torch\.float32, not a parameter"),
    "embedding": (lambda: nn.Embedding(V, 16), r"head is Embedding, not nn\.Linear"),
}


@pytest.mark.parametrize("name", HEADS)
def test_split_head_refuses_a_head_that_is_not_plain(name):
    make, message = HEADS[name]
    model = llama()
    model.lm_head = make()
    with pytest.raises(TypeError, match=message + r".*logits_policy_loss"):
        split_head(model)


class Tuples(nn.Module):
    """A model that is nearly one of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.base_model, self.lm_head, self.config = nn.Embedding(V, 16), nn.Linear(16, V), CONFIGS["llama"]

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> tuple[torch.Tensor]:
        return (self.lm_head(self.base_model(input_ids)),)


class Holder(nn.Module):
    """As trl's model with a value head is."""

    def __init__(self) -> None:
        super().__init__()
        self.pretrained_model = llama()


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return llama()


def with_nan() -> nn.Module:
    model = llama()
    nn.init.constant_(model.model.layers[0].mlp.down_proj.weight, torch.nan)
    return model


def emptied() -> nn.Module:
    model = llama()
    model.lm_head.weight.data = torch.empty(0)  # what ZeRO-3 leaves outside a forward
    return model


def small_t5() -> nn.Module:
    return T5ForConditionalGeneration(T5Config(vocab_size=V, d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2))


def small_bert() -> nn.Module:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return BertForMaskedLM(BertConfig(vocab_size=V, **sizes))


def small_xlm() -> nn.Module:
    return XLMWithLMHeadModel(XLMConfig(vocab_size=V, emb_dim=16, n_layers=1, n_heads=2, pad_index=0))


MODELS = {
    "nothing": (lambda: None, TypeError, r"model is None: give a loaded model"),
    "a name": (lambda: "gpt2", TypeError, r"model is 'gpt2': give a loaded model"),
    "a class": (lambda: LlamaModel, TypeError, r"model is the class LlamaModel: give a loaded model"),
    "a layer": (lambda: nn.Linear(16, V), TypeError, r"Linear is not a transformers model.*linear_policy_loss"),
    "a holder": (Holder, TypeError, r"Holder is not a transformers model.*give model\.pretrained_model"),
    "no head": (lambda: LlamaModel(CONFIGS["llama"]), TypeError, r"LlamaModel has no language-model head: load"),
    "a classifier": (
        lambda: LlamaForSequenceClassification(CONFIGS["llama"]),
        TypeError,
        r"LlamaForSequenceClassification has no language-model head",
    ),
    "an encoder-decoder": (small_t5, TypeError, r"T5ForConditionalGeneration is an encoder-decoder"),
    "a masked LM": (small_bert, ValueError, r"BertForMaskedLM is not causal"),
    "a bidirectional LM with a plain head": (small_xlm, ValueError, r"XLMWithLMHeadModel is not causal.*is_decoder"),
    "on the meta device": (on_meta, ValueError, r"weight is on the meta device.*from_pretrained"),
    "empty weights": (emptied, ValueError, r"lm_head\.weight is empty: the model is sharded.*logits_policy_loss"),
    "tuples": (lambda: untrained(return_dict=False), TypeError, r"returns tuples: set model\.config\.return_dict"),
    "a forward of its own": (Tuples, ValueError, r"Tuples: its backbone could not be run.*TypeError"),
    "NaN weights": (with_nan, ValueError, r"LlamaForCausalLM: its logits are not finite"),
}


@pytest.mark.parametrize("name", MODELS)
def test_split_head_refuses_by_name(name):
    make, kind, message = MODELS[name]
    with pytest.raises(kind, match=message) as caught:
        split_head(make())
    assert "\n" not in str(caught.value)


def test_split_head_leaves_the_model_as_it_was():
    model = llama().train()
    model.model.layers[0].eval()
    model.model.norm.weight.requires_grad_(False)
    model.lm_head.weight.grad = torch.ones(V, 16)
    modes = [module.training for module in model.modules()]
    wanted = [p.requires_grad for p in model.parameters()]
    weights = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    parts = split_head(model)
    assert parts.backbone is model.model
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == wanted
    assert not model.lm_head._forward_pre_hooks
    assert torch.equal(model.lm_head.weight.grad, torch.ones(V, 16))
    assert model.model.norm.weight.grad is None
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(model.state_dict(), weights, rtol=0, atol=0)


def test_split_head_keeps_random_numbers_where_a_forward_draws_some():
    model = llama()
    model.model.register_forward_pre_hook(lambda *_: torch.rand(3) is None or None)
    state = torch.get_rng_state()
    split_head(model)
    assert torch.equal(torch.get_rng_state(), state)


def test_split_head_restores_modes_of_a_model_that_it_refuses():
    model = untrained("granite-divides").train()
    model.lm_head.register_forward_hook(lambda layer, inputs, logits: 3 * logits)
    with pytest.raises(ValueError, match="differ"):
        split_head(model)
    assert all(module.training for module in model.modules())
    assert not model.lm_head._forward_pre_hooks


@pytest.mark.filterwarnings("error:the own loss")
@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, dtype) for name in CONFIGS for dtype in (torch.bfloat16, torch.float16)] + [("llama", torch.float64)],
)
def test_split_head_in_every_dtype(name, dtype):
    parts = split_head(untrained(name).to(dtype))
    assert parts.weight.dtype == dtype


@pytest.mark.filterwarnings("error:the own loss")
def test_labels_that_are_shifted_already_are_no_term():
    sizes = {"d_model": 16, "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 16}
    split_head(BartForCausalLM(BartConfig(vocab_size=V, max_position_embeddings=32, **sizes)))


def test_a_model_that_computes_no_loss_is_split_all_the_same():
    model = llama()
    model.loss_function = None
    assert split_head(model).weight is model.lm_head.weight


def test_split_head_takes_ignore_index_and_the_models_own_transforms_alone():
    assert split_head(llama(), ignore_index=-1).head.ignore_index == -1
    with pytest.raises(TypeError, match="scale"):
        split_head(llama(), scale=2.0)


@pytest.mark.parametrize("name", ["mixtral", "qwen3-moe"])
def test_router_balancing_is_named_and_can_be_added_exactly(name):
    model = untrained(name, output_router_logits=True)
    with pytest.warns(UserWarning, match=r"adds router balancing .*output_router_logits = False"):
        parts = split_head(model)
    ids = tokens()
    output = model(ids, output_router_logits=True, output_hidden_states=True, logits_to_keep=1)
    hidden = output.hidden_states[-1][:, :-1].flatten(0, 1)
    loss = linear_policy_loss(hidden, parts.weight, ids[:, 1:].flatten(), objective=sft(), head=parts.head).loss
    loss = loss + model.router_aux_loss_coef * output.aux_loss
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    own = model(ids, labels=ids).loss
    own.backward()
    assert loss.item() == pytest.approx(own.item(), rel=1e-6)
    for name, p in model.named_parameters():
        torch.testing.assert_close(found[name], p.grad, rtol=0, atol=1e-6)


@pytest.mark.parametrize("changes", [{"output_router_logits": False}, {"router_aux_loss_coef": 0.0}])
def test_router_balancing_that_is_off_is_not_named(changes, recwarn):
    split_head(untrained("mixtral", **{"output_router_logits": True, **changes}))
    assert not [w for w in recwarn if "own loss" in str(w.message)]


def test_a_penalty_on_the_log_sum_exp_is_named():
    with pytest.warns(UserWarning, match="adds a penalty on the log-sum-exp"):
        split_head(untrained("bamba", z_loss_coefficient=1e-3))


def test_split_head_finds_a_head_with_bias():
    model = llama()
    model.lm_head = nn.Linear(16, V)
    parts = split_head(model)
    assert parts.head.bias is model.lm_head.bias
    assert Head().bias is None
