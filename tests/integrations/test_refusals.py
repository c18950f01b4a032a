"""Models and heads that cannot be taken apart: refused by name, with the way out, in one line."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaForSequenceClassification,
    LlamaModel,
    T5Config,
    T5ForConditionalGeneration,
    XLMConfig,
    XLMWithLMHeadModel,
)

from gft_kernels.integrations.hf import split_head

from .models import CONFIGS, Output, V, llama, untrained


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


def eight_bits() -> nn.Linear:
    layer = nn.Linear(16, V, bias=False)
    layer.weight = nn.Parameter(layer.weight.data.to(torch.float8_e4m3fn), requires_grad=False)
    return layer


def dynamically_quantised() -> nn.Module:
    return torch.ao.nn.quantized.dynamic.Linear(16, V)


HEADS = {
    "adapted": (lambda: Adapted(16, V, bias=False), r"head is \S*\.Adapted, not nn\.Linear.*Put an nn\.Linear"),
    "4 bit": (Linear4bit, r"head is \S*\.Linear4bit, not nn\.Linear.*neither quantised nor"),
    "torchao": (subclassed_weight, r"head is Int8Tensor of torch\.float32.*neither quantised nor"),
    "recomputed": (recomputed_weight, r"head is Tensor of torch\.float32, not a parameter in 16 bits or more"),
    "8 bits": (eight_bits, r"head is Parameter of torch\.float8.*neither quantised nor"),
    "PyTorch's own quantised": (dynamically_quantised, r"head is torch\.ao\.\S*\.Linear, not nn\.Linear"),
    "embedding": (lambda: nn.Embedding(V, 16), r"head is \S*\.Embedding, not nn\.Linear"),
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


def without_logits() -> nn.Module:
    model = llama()
    model.forward = lambda *_, **__: Output()
    return model


def without_hidden_states() -> nn.Module:
    model = llama()
    model.model.forward = lambda *_, **__: Output()
    return model


def last_logits_alone() -> nn.Module:
    model = llama()
    own = model.forward
    model.forward = lambda *inputs, **options: own(*inputs, **{**options, "labels": None, "logits_to_keep": 1})
    return model


def narrow_head() -> nn.Module:
    model = llama()
    model.lm_head = nn.Linear(8, V)  # as RemBERT's, behind a projection
    return model


class Holder(nn.Module):
    """As trl's model with a value head is."""

    def __init__(self) -> None:
        super().__init__()
        self.pretrained_model = llama()


class Proxy(nn.Module):
    """As Lightning Fabric's: attributes are the model's, and the forward runs in its precision."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = llama()

    def __getattr__(self, name: str) -> object:
        return super().__getattr__(name) if name == "inside" else getattr(self.inside, name)


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
    "a holder": (Holder, TypeError, r"Holder is not a transformers model.*give model\.pretrained_model, if"),
    "a proxy": (Proxy, TypeError, r"Proxy is not a transformers model.*give model\.inside, if.*logits_policy_loss"),
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
    "a forward of its own": (Tuples, ValueError, r"Tuples: it could not be run.*AttributeError: 'tuple'"),
    "no logits": (without_logits, ValueError, r"LlamaForCausalLM calls its head 0 times"),
    "no hidden states": (without_hidden_states, ValueError, r"it could not be run.*TypeError: 'NoneType'"),
    "logits of the last token alone": (last_logits_alone, ValueError, r"of shape \(2, 1, 16\) for tokens \(2, 4\)"),
    "a head of another width": (narrow_head, ValueError, r"it could not be run.*8x16 and 8x31"),
    "NaN weights": (with_nan, ValueError, r"LlamaForCausalLM: its logits are not finite"),
}


@pytest.mark.parametrize("name", MODELS)
def test_split_head_refuses_by_name(name):
    make, kind, message = MODELS[name]
    with pytest.raises(kind, match=message) as caught:
        split_head(make())
    assert "\n" not in str(caught.value)
