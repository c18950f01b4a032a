"""A bare model taken apart: its parts are the model itself, or it is refused by name."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import BartConfig, BartForCausalLM, LlamaModel

from gft_kernels import Head, linear_logprob, linear_policy_loss, sft
from gft_kernels.integrations.hf import split_head

from .models import CONFIGS, Output, V, llama, tokens, untrained


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
    assert split_head(model).head.softcap == 50


def test_split_head_refuses_unknown_transforms():
    with pytest.raises(
        ValueError, match=r"GraniteForCausalLM changes its logits in a way that is not known .*Then call"
    ):
        split_head(with_unknown_transform("granite-divides"))


def with_unknown_transform(name):
    model = untrained(name)
    model.lm_head.register_forward_hook(lambda layer, inputs, logits: torch.asinh(logits))
    return model


def test_split_head_refuses_a_backbone_that_is_not_the_models():
    model = llama()
    model.lm_head.register_forward_pre_hook(lambda layer, inputs: (2 * inputs[0],))
    with pytest.raises(ValueError, match=r"log-probs .* differ .*build Head\(\.\.\.\) by hand"):
        split_head(model)


class Bare(nn.Module):
    """A model of one's own with what `split_head` needs, and no config."""

    def __init__(self) -> None:
        super().__init__()
        self.base_model, self.lm_head = LlamaModel(CONFIGS["llama"]), nn.Linear(16, V)

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> Output:
        output = Output()
        output.logits = self.lm_head(self.base_model(input_ids).last_hidden_state)
        return output


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
    assert not model.lm_head._forward_hooks
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
    model = with_unknown_transform("granite-divides").train()
    hooks = len(model.lm_head._forward_hooks)
    with pytest.raises(ValueError, match="not known"):
        split_head(model)
    assert all(module.training for module in model.modules())
    assert len(model.lm_head._forward_hooks) == hooks


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


def test_split_head_takes_a_model_of_ones_own():
    model = Bare()
    assert split_head(model).weight is model.lm_head.weight


def test_split_head_finds_a_head_with_bias():
    model = llama()
    model.lm_head = nn.Linear(16, V)
    parts = split_head(model)
    assert parts.head.bias is model.lm_head.bias
    assert Head().bias is None
