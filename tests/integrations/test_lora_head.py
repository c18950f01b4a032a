"""fuse_loss with PEFT's LoRA on the head: exactly what the model's own logits give."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from gft_kernels import Backend, gft, sft
from gft_kernels.integrations.hf import PolicyBatch, fuse_loss

from ..helpers.recorder import Recorder
from .models import V, llama, tokens, untrained
from .test_fuse import IDS, TARGETS, assert_own, gradients, own_logprobs

PLAIN = {"r": 3, "lora_alpha": 5, "init_lora_weights": False, "task_type": "CAUSAL_LM"}


def config(targets: tuple[str, ...] = ("q_proj", "lm_head"), **options: object) -> LoraConfig:
    return LoraConfig(**{"target_modules": list(targets), **PLAIN, **options})


def lora(model: nn.Module | None = None, **options: object) -> nn.Module:
    torch.manual_seed(0)
    return get_peft_model(model or llama(), config(**options))


def two_adapters(**options: object) -> nn.Module:
    model = lora(**options)
    model.add_adapter("second", config(("lm_head",), r=2, use_rslora=True))
    model.base_model.set_adapter(["default", "second"])
    return model


def biased() -> nn.Module:
    model = untrained("llama")
    model.lm_head = nn.Linear(16, V)
    return model


MODELS = {
    "plain": lora,
    "rslora": lambda: lora(use_rslora=True),
    "patterns of rank and alpha": lambda: lora(rank_pattern={"lm_head": 5}, alpha_pattern={"lm_head": 2}),
    "a bias of lora_B": lambda: lora(biased(), lora_bias=True, target_modules=["lm_head"]),
    "two active adapters": two_adapters,
    "tied embeddings": lambda: lora(untrained("qwen2-tied")),
    "a soft cap": lambda: lora(untrained("gemma2-softcap")),
    "a scale": lambda: lora(untrained("granite-divides")),
    "modules_to_save besides": lambda: lora(modules_to_save=["embed_tokens"]),
    "embeddings and head": lambda: lora(target_modules=["embed_tokens", "lm_head"]),
    "the head alone": lambda: lora(target_modules=["lm_head"]),
    "injected without a wrapper": lambda: peft.inject_adapter_in_model(config(), llama()),
    "a mixed model": lambda: peft.PeftMixedModel(llama(), config(), "default"),
}


@pytest.mark.filterwarnings("ignore:.*ensure_weight_tying", "ignore:.*tie_word_embeddings", "ignore:.*has no bias")
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_lora_on_the_head_is_exact(make):
    model = make()
    head = model.get_output_embeddings()
    assert type(head).__module__ == "peft.tuners.lora.layer"
    assert_own(fuse_loss(model, backend=Backend("chunked", skip_rows=False)))
    assert any(p.grad.abs().max() > 1e-4 for name, p in head.named_parameters() if "lora_A" in name)


def test_lora_added_after_fuse_loss_disabled_merged_and_unloaded():
    model = lora(fuse_loss(llama(), backend=Backend(skip_rows=False)))
    assert_own(model)
    with_adapter = own_logprobs(model)
    with model.disable_adapter():
        assert (own_logprobs(model) - with_adapter).abs().max() > 1e-2
        batch = PolicyBatch(TARGETS)
        torch.testing.assert_close(
            model(input_ids=IDS, policy_batch=batch).logprobs[TARGETS != -100], own_logprobs(model)[TARGETS != -100]
        )
    assert_own(model)
    model.merge_adapter()
    head = model.get_output_embeddings()
    merged = head.base_layer.weight.detach().clone()
    found = model(input_ids=IDS, policy_batch=PolicyBatch(TARGETS)).logprobs
    torch.testing.assert_close(found[TARGETS != -100], with_adapter[TARGETS != -100], rtol=0, atol=1e-5)
    with model.disable_adapter():  # PEFT takes the adapter out of the weight when it is called
        found = model(input_ids=IDS, policy_batch=PolicyBatch(TARGETS)).logprobs
        assert not head.merged
        assert not torch.equal(head.base_layer.weight, merged)
        torch.testing.assert_close(found[TARGETS != -100], own_logprobs(model)[TARGETS != -100], rtol=0, atol=1e-5)
    unloaded = model.merge_and_unload()
    unloaded.requires_grad_(True)
    assert_own(unloaded)


def test_a_copy_and_another_active_adapter():
    model = fuse_loss(two_adapters(), backend=Backend(skip_rows=False))
    copied = copy.deepcopy(model)
    copied.set_adapter("second")
    assert_own(copied)
    assert copied.get_output_embeddings().lora_A["default"].weight.grad is None
    assert_own(model)


def test_dropout_is_the_one_that_peft_draws():
    model = fuse_loss(lora(lora_dropout=0.5, target_modules=["lm_head"]), backend=Backend(skip_rows=False)).train()
    losses = []
    for run in (lambda: model(input_ids=IDS, policy_batch=PolicyBatch(TARGETS, sft())).loss, lambda: own(model)):
        torch.manual_seed(7)
        losses.append((loss := run(), gradients(model, loss)))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-6)
    torch.manual_seed(8)
    assert (own(model) - losses[1][0]).abs() > 1e-4


def own(model: nn.Module) -> torch.Tensor:
    return -own_logprobs(model)[TARGETS != -100].mean()


def test_fp32_adapters_on_a_bf16_model():
    model = fuse_loss(lora(llama().bfloat16()))
    head = model.get_output_embeddings()
    assert head.lora_A["default"].weight.dtype == torch.float32
    found = model(input_ids=IDS, policy_batch=PolicyBatch(TARGETS, sft())).loss
    got, want = gradients(model, found), gradients(model, own(model))
    torch.testing.assert_close(found, own(model).float(), rtol=1e-2, atol=0)
    for name in want:
        assert got[name].dtype == want[name].dtype
        assert (got[name] - want[name]).norm() <= 3e-2 * want[name].norm()


def test_autocast_computes_in_its_dtype():
    model = fuse_loss(lora())
    with torch.autocast("cpu", torch.bfloat16):
        found = model(input_ids=IDS, policy_batch=PolicyBatch(TARGETS, sft()))
        want = own(model)
    torch.testing.assert_close(found.loss, want.float(), rtol=1e-2, atol=0)
    assert gradients(model, found.loss)["base_model.model.lm_head.lora_B.default.weight"].dtype == torch.float32


def test_no_tensor_of_the_size_of_the_frozen_head_is_made():
    model = fuse_loss(lora(untrained("llama", vocab_size=3000)), backend=Backend("chunked", chunk_rows=4))
    with Recorder() as recorder:
        model(input_ids=IDS, policy_batch=PolicyBatch(TARGETS, sft())).loss.backward()
    assert model.get_output_embeddings().lora_B["default"].weight.grad.abs().max() > 0
    assert recorder.largest() < 3000 * 16


@pytest.mark.usefixtures("plain_memory")
def test_compiled_model():
    model = fuse_loss(lora(), backend="chunked")
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    batch = PolicyBatch(TARGETS, gft(0.03), torch.randn(TARGETS.shape))
    found = [gradients(model, m(input_ids=IDS, policy_batch=batch).loss) for m in (compiled, model)]
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)


def other(method: str, **options: object) -> nn.Module:
    return get_peft_model(llama(), getattr(peft, method)(target_modules=["lm_head"], task_type="CAUSAL_LM", **options))


def hooked() -> nn.Module:
    model = lora()
    model.get_output_embeddings().base_layer.register_forward_hook(lambda *_: None)
    return model


OTHERS = {
    "DoRA": (lambda: lora(use_dora=True), r"'default' on the head is DoraLinearVariant.*use plain LoRA"),
    "LoHa": (lambda: other("LoHaConfig"), r"head is peft.tuners.loha.*Leave the head out"),
    "LoKr": (lambda: other("LoKrConfig"), r"head is peft.tuners.lokr.*Leave the head out"),
    "IA3": (lambda: other("IA3Config", feedforward_modules=[]), r"head is peft.tuners.ia3.*Leave the head out"),
    "VeRA": (lambda: other("VeraConfig"), r"head is peft.tuners.vera.*Leave the head out"),
    "activated LoRA": (lambda: lora(alora_invocation_tokens=[5]), r"acts in the wrapper's forward"),
    "a hook inside": (hooked, r"a part of the head's LoRA layer, Linear, has hooks"),
    "a quantised base": (
        lambda: quantised(lora()),
        r"the weight of the model's head is Parameter of torch.float8_e4m3fn",
    ),
}


def quantised(model: nn.Module) -> nn.Module:
    base = model.get_output_embeddings().base_layer
    base.weight = nn.Parameter(base.weight.data.to(torch.float8_e4m3fn), requires_grad=False)
    return model


@pytest.mark.parametrize(("make", "message"), OTHERS.values(), ids=OTHERS)
def test_other_adapters_on_the_head_are_refused(make, message):
    with pytest.raises(TypeError, match=message + r".*logits_policy_loss"):
        fuse_loss(make())


def test_a_dora_that_is_merged_is_the_heads_weight():
    model = lora(use_dora=True, target_modules=["lm_head"])
    model.merge_adapter()
    found = fuse_loss(model)(input_ids=IDS, policy_batch=PolicyBatch(TARGETS)).logprobs[TARGETS != -100]
    torch.testing.assert_close(found, own_logprobs(model)[TARGETS != -100], rtol=0, atol=1e-5)


def test_adapters_of_single_rows_are_refused():
    model = fuse_loss(two_adapters()).eval()
    names = ["default", "second"]
    assert model(input_ids=tokens(), adapter_names=names).logits.shape == (2, 7, V)
    with pytest.raises(TypeError, match="the head is called with adapter_names"):
        model(input_ids=IDS, adapter_names=names, policy_batch=PolicyBatch(TARGETS, sft()))
