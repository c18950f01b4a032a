"""The head against verl's own where that is right, and against the model's own logits elsewhere."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import PhiConfig
from verl.models.transformers import monkey_patch
from verl.utils.experimental import torch_functional

from gft_kernels.integrations.verl import FusedLinear, head, install, registration

from ..models import CONFIGS, SIZES, V, untrained

VERLS = head.VerlsLinear
LOUD = 30.0  # a fresh head's logits are small: grown, its soft cap bends them
PLAIN = ("llama", "qwen2-tied", "mixtral")
TRANSFORMED = ("gemma2-softcap", "granite-divides", "cohere-multiplies", "phi-bias")


@pytest.fixture(autouse=True)
def own_forwards(monkeypatch):
    """verl patches classes: put their own forwards back after each test."""
    plain, seen = monkey_patch.patch_forward_with_backends, set()

    def remembered(model, *args, **kwargs):
        if type(model) not in seen:
            seen.add(type(model))
            monkeypatch.setattr(type(model), "forward", type(model).forward)
        return plain(model, *args, **kwargs)

    monkeypatch.setattr(monkey_patch, "patch_forward_with_backends", remembered)


@pytest.fixture
def configs(monkeypatch):
    monkeypatch.setitem(CONFIGS, "phi-bias", PhiConfig(**SIZES))


def model_of(name):
    model = untrained(name)
    with torch.no_grad():
        model.lm_head.weight.mul_(LOUD)
        if model.lm_head.bias is not None:
            model.lm_head.bias.normal_()
    return model


def fuse(model, backend="torch"):
    monkey_patch.patch_forward_with_backends(model, use_fused_kernels=True, fused_kernels_backend=backend)
    return model


def ids():
    return torch.randint(3, V, (3, 7))


def loss_of(log_probs, entropy):
    """Something that both outputs, and every token, have a share in."""
    weights = torch.linspace(-1, 2, log_probs.numel()).view_as(log_probs)
    return (weights * log_probs + weights.flip(0) * entropy).sum()


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def by_logits(model, tokens, temperature):
    """(log-probs, entropies, gradients) of the model's own logits."""
    log_p = (model(input_ids=tokens).logits / temperature).log_softmax(-1)
    log_probs = log_p.gather(-1, tokens.roll(-1, 1)[..., None]).squeeze(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    model.zero_grad()
    loss_of(log_probs, entropy).backward()
    return log_probs, entropy, gradients(model)


def by_fused_forward(model, tokens, temperature):
    output = model(input_ids=tokens, temperature=temperature, return_dict=True)
    model.zero_grad()
    loss_of(output.log_probs, output.entropy).backward()
    return output.log_probs, output.entropy, gradients(model)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("name", PLAIN + TRANSFORMED)
def test_fused_forward_is_that_of_the_models_own_logits(name, temperature, configs):
    model, tokens = model_of(name), ids()
    want = by_logits(model, tokens, temperature)
    got = by_fused_forward(fuse(model), tokens, temperature)
    for mine, other in zip(got[:2], want[:2], strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=4e-6)
    assert got[2].keys() == want[2].keys()
    for parameter, gradient in want[2].items():
        assert (got[2][parameter] - gradient).abs().max() <= 1e-5 * gradient.abs().max().clamp(min=1e-3), parameter


@pytest.mark.parametrize("name", TRANSFORMED)
def test_verls_own_head_leaves_the_transforms_out(name, configs, monkeypatch):
    """Why the head is exchanged also for those who train with another loss."""
    model, tokens = model_of(name), ids()
    want = by_logits(model, tokens, 1.0)[0]
    fuse(model)
    monkeypatch.setattr(torch_functional, "FusedLinearForPPO", VERLS)
    assert (model(input_ids=tokens, return_dict=True).log_probs - want).abs().max() > 0.1


@pytest.mark.parametrize("shape", [(1, 11), (11,), (2, 3)])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_head_by_itself_is_verls_own(shape, temperature):
    given = torch.randn(*shape, 16), torch.randn(V, 16), torch.randint(0, V, shape)
    found = []
    for linear in (VERLS(), FusedLinear(), FusedLinear(chunk_size=4)):
        hidden, weight = (x.clone().requires_grad_() for x in given[:2])
        log_probs, entropy = linear(hidden, weight, given[2], temperature)
        assert log_probs.shape == entropy.shape == shape
        found.append((log_probs, entropy, *torch.autograd.grad(loss_of(log_probs, entropy), (hidden, weight))))
    for other in found[1:]:
        for got, want in zip(other, found[0], strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=4e-6 * max(1.0, want.abs().max().item()))


def test_chunk_size_reaches_the_engine():
    assert FusedLinear(chunk_size=4).backend.chunk_rows == 4
    assert FusedLinear().backend.chunk_rows is None


def test_frozen_head_has_no_gradient():
    hidden, weight = torch.randn(1, 5, 16, requires_grad=True), torch.randn(V, 16)
    FusedLinear()(hidden, weight, torch.randint(0, V, (1, 5)))[0].sum().backward()
    assert hidden.grad.abs().max() > 0
    assert weight.grad is None


def test_labels_of_the_caller_are_taken():
    model, tokens = fuse(model_of("gemma2-softcap")), ids()
    want = model(input_ids=tokens, return_dict=True).log_probs
    got = model(input_ids=tokens, shift_labels=tokens.roll(-1, 1), return_dict=True).log_probs
    assert torch.equal(got, want)
    assert not torch.equal(model(input_ids=tokens, shift_labels=tokens, return_dict=True).log_probs, want)


def test_autocast_computes_in_bf16():
    hidden, weight, labels = torch.randn(1, 5, 16), torch.randn(V, 16), torch.randint(0, V, (1, 5))
    with torch.autocast("cpu", torch.bfloat16):
        got = FusedLinear()(hidden, weight, labels)[0]
    rounded = FusedLinear()(hidden.bfloat16(), weight.bfloat16(), labels)[0]
    assert torch.equal(got, rounded)
    assert not torch.equal(got, FusedLinear()(hidden, weight, labels)[0])


def test_two_models_of_a_class_keep_their_own_transforms():
    tokens = ids()
    models = [untrained("gemma2-softcap", final_logit_softcapping=cap) for cap in (0.5, None)]
    want = [by_logits(model, tokens, 1.0)[0] for model in models]
    for model in models:
        fuse(model)
    assert [model._head_transforms.softcap for model in models] == [0.5, None]
    for model, expected in zip(models, want, strict=True):
        torch.testing.assert_close(model(input_ids=tokens, return_dict=True).log_probs, expected, atol=4e-6, rtol=1e-5)


def test_model_may_be_fused_twice():
    assert fuse(fuse(untrained("gemma2-softcap")))._head_transforms.softcap == 0.5


def test_model_of_a_fused_class_keeps_its_own_forward():
    tokens, plain = ids(), untrained("llama")
    want = plain(input_ids=tokens).logits
    fuse(untrained("llama"))
    assert torch.equal(plain(input_ids=tokens).logits, want)


def test_model_without_numbers_yet_shows_its_transforms():
    """verl builds all processes but the first on the meta device."""
    with torch.device("meta"):
        model = type(untrained("gemma2-softcap"))(CONFIGS["gemma2-softcap"])
    assert fuse(model)._head_transforms.softcap == 0.5


def test_transforms_are_found_under_init_empty_weights():
    from accelerate import init_empty_weights

    with init_empty_weights():
        assert fuse(model_of("gemma2-softcap"))._head_transforms.softcap == 0.5


def test_seed_and_modes_are_left_alone():
    model = untrained("llama").train()
    state = torch.get_rng_state()
    fuse(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("backend", ["triton", "liger"])
def test_other_backends_stay_verls(backend, monkeypatch):
    def ours(*_, **__):
        raise AssertionError("not asked for")

    monkeypatch.setattr(head, "linear_logprob", ours)
    model = fuse(untrained("llama"), backend)
    assert not hasattr(model, "_head_transforms")
    if backend == "liger":  # verl's is in PyTorch where Liger is not installed
        assert model(input_ids=ids(), return_dict=True).log_probs.shape == (3, 7)


def test_install_puts_verls_head_back():
    assert torch_functional.FusedLinearForPPO is FusedLinear
    try:
        install(head=False)
        assert torch_functional.FusedLinearForPPO is VERLS
        assert monkey_patch.patch_forward_with_backends is registration._patch
    finally:
        install()
    assert torch_functional.FusedLinearForPPO is FusedLinear


class Shifted(type(untrained("llama"))):
    """Logits changed in a way that nobody knows."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits + 1.0
        return output


class Halved(type(untrained("llama"))):
    """Hidden states changed on their way to the head."""

    def forward(self, input_ids, **kwargs):
        output = self.model(input_ids=input_ids)
        output.logits = self.lm_head(output[0] / 2)
        return output


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: Shifted(CONFIGS["llama"]), ValueError, "Shifted changes its logits in a way that is not known"),
        (lambda: Halved(CONFIGS["llama"]), ValueError, "Halved changes its hidden states"),
        (lambda: untrained("gpt2"), TypeError, "GPT2LMHeadModel has no model"),
    ],
    ids=["unknown curve", "hidden states changed", "other names"],
)
def test_models_that_would_be_trained_wrongly_are_refused(make, error, said):
    with pytest.raises(error, match=f"{said}.*use_fused_kernels=False") as refusal:
        fuse(make())
    assert "by hand" not in str(refusal.value)
    assert "logits_policy_loss" not in str(refusal.value)


def test_models_are_not_refused_where_nothing_is_fused():
    monkey_patch.patch_forward_with_backends(untrained("gpt2"))


def test_adapter_on_the_head_is_refused():
    model = fuse(untrained("llama"))
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM"))
    with pytest.raises(TypeError, match=r"LlamaForCausalLM is peft.*leave lm_head out of target_modules"):
        adapted(input_ids=ids(), return_dict=True)


def test_adapters_elsewhere_are_trained():
    tokens = ids()
    config = LoraConfig(target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(model_of("llama"), config)
    want = by_logits(model, tokens, 1.0)
    fuse(model.get_base_model())
    got = by_fused_forward(model, tokens, 1.0)
    torch.testing.assert_close(got[0], want[0], atol=4e-6, rtol=1e-5)
    for name, gradient in want[2].items():
        assert (got[2][name] - gradient).abs().max() <= 1e-5 * gradient.abs().max().clamp(min=1e-3), name
    assert not any("lm_head" in name for name in got[2])


def test_head_forgets_the_model_after_an_error():
    model = fuse(untrained("llama"))
    with pytest.raises(ValueError, match="outside"):
        model(input_ids=ids(), shift_labels=torch.full((3, 7), V), return_dict=True)
    assert head._running.get() is None
    assert "forward" not in vars(model.lm_head)
    assert isinstance(model.lm_head(torch.randn(1, SIZES["hidden_size"])), torch.Tensor)
    assert isinstance(model.lm_head, nn.Linear)
