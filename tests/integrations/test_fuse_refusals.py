"""What fuse_loss and a fused model refuse: each with the value, and the way out."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from peft import PromptTuningConfig, get_peft_model
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from transformers import BertConfig, BertLMHeadModel, ProphetNetConfig, ProphetNetForCausalLM

from gft_kernels import sft
from gft_kernels.integrations.hf import PolicyBatch, fuse_loss

from .models import V, llama
from .test_fuse import IDS, TARGETS, assert_own
from .test_wrappers import DeepSpeedEngine


def test_tensor_parallel_head_is_refused():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = fuse_loss(llama())
        parallelize_module(model.lm_head, init_device_mesh("cpu", (1,)), ColwiseParallel())
        with pytest.raises(TypeError, match=r"head is tensor-parallel.*VocabularyShard.of\(lm_head.weight\)"):
            model(input_ids=IDS, policy_batch=PolicyBatch(TARGETS, sft()))
    finally:
        dist.destroy_process_group()


def transformed(change) -> nn.Module:
    model = llama()
    model.lm_head.register_forward_hook(lambda layer, inputs, logits: change(logits))
    return model


class Scaled(nn.Linear):
    """A head whose forward is more than a product."""

    def forward(self, hidden):
        return 2 * super().forward(hidden)


def given_head(layer: nn.Linear) -> nn.Module:
    model = llama()
    model.lm_head = layer
    return model


def called_twice(model: nn.Module) -> nn.Module:
    def ahead(_, __, output):
        model.lm_head(output.last_hidden_state)

    model.model.register_forward_hook(ahead)
    return model


def encoder() -> nn.Module:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return BertLMHeadModel(BertConfig(vocab_size=V, **sizes))  # is_decoder is False


def streams() -> nn.Module:
    """A model with a prediction of the token after the next, from the same head."""
    sizes = {"hidden_size": 16, "decoder_ffn_dim": 32, "num_decoder_layers": 1, "num_decoder_attention_heads": 2}
    return ProphetNetForCausalLM(ProphetNetConfig(vocab_size=V, ngram=2, **sizes))


def broken() -> nn.Module:
    model = llama()
    model.model.norm.weight.data[3] = torch.nan
    return model


def in_zero(mark: str) -> nn.Module:
    """A parameter as ZeRO marks it: `ds_id` in stage 3, `_hp_mapping` in stages 1 and 2."""
    model = llama()
    setattr(model.lm_head.weight, mark, None)
    return model


class FullyShardedDataParallel(nn.Module):
    """As FSDP1's: it holds the model, and its weights in a tensor of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.module = llama()


UNKNOWN = {
    "DeepSpeed": (DeepSpeedEngine, TypeError, r"is in DeepSpeed, where .* not been tried: use fully_shard.*logits_pol"),
    "ZeRO-2": (lambda: in_zero("_hp_mapping"), TypeError, "is in DeepSpeed.*logits_policy_loss.*or use FSDP2"),
    "ZeRO-3": (lambda: in_zero("ds_id"), TypeError, "is in DeepSpeed"),
    "FSDP1": (FullyShardedDataParallel, TypeError, r"FullyShardedDataParallel already, .* call fuse_loss before"),
    "NaN weights": (broken, ValueError, "its logits are not finite: look for NaN"),
    "an unknown curve": (lambda: transformed(torch.sinh), ValueError, "changes its logits in a way that is not known"),
    "a column is masked": (
        lambda: transformed(lambda z: z.index_fill(-1, torch.tensor([3]), -1e4)),
        ValueError,
        "changes its logits",
    ),
    "sees later tokens": (encoder, ValueError, r"BertLMHeadModel is not causal.*config.is_decoder = True"),
    "other shapes": (streams, ValueError, r"hidden states of shape \(2, 2, 4, 16\) for tokens \(2, 4\)"),
    "two calls of the head": (
        lambda: called_twice(llama()),
        ValueError,
        "calls its head 2 times",
    ),
    "a head with a forward of its own": (lambda: given_head(Scaled(16, V, bias=False)), TypeError, r"Scaled, not nn"),
    "prompt tuning": (
        lambda: get_peft_model(llama(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)),
        TypeError,
        "puts virtual tokens before the text",
    ),
    "DataParallel": (lambda: nn.DataParallel(llama()), TypeError, "DataParallel, which copies it"),
    "no head": (lambda: llama().model, TypeError, "has no language-model head"),
    "a class": (lambda: type(llama()), TypeError, "is the class LlamaForCausalLM"),
    "a name": (lambda: "llama", TypeError, "give a loaded model"),
}


@pytest.mark.parametrize(("make", "error", "message"), UNKNOWN.values(), ids=UNKNOWN)
def test_models_that_cannot_be_fused_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        fuse_loss(make())


BATCHES = {
    "targets of [B, T]": ({"targets": IDS}, ValueError, r"targets have \(2, 7\): they must be \[B, T-1\]"),
    "advantages of [B, T]": ({"advantages": torch.ones(IDS.shape)}, ValueError, r"PolicyBatch.advantages has shape"),
    "weights of [N]": ({"token_weights": torch.ones(12)}, ValueError, r"PolicyBatch.token_weights has shape \(12,\)"),
    "a number": ({"old_logprobs": 1.0}, ValueError, "PolicyBatch.old_logprobs has shape float"),
}


@pytest.mark.parametrize(("change", "error", "message"), BATCHES.values(), ids=BATCHES)
def test_batches_of_another_shape_are_refused(change, error, message):
    model = fuse_loss(llama())
    with pytest.raises(error, match=message):
        model(input_ids=IDS, policy_batch=PolicyBatch(**{"targets": TARGETS, "objective": sft(), **change}))
    assert_own(model)  # nothing is left behind


def test_batch_of_another_type_is_refused():
    with pytest.raises(TypeError, match="policy_batch is dict: give a PolicyBatch"):
        fuse_loss(llama())(input_ids=IDS, policy_batch={"targets": TARGETS})


def test_model_put_into_deepspeed_afterwards_is_refused():
    model = fuse_loss(llama())
    model.lm_head.weight.ds_id = 0
    with pytest.raises(TypeError, match="is in DeepSpeed"):
        model(input_ids=IDS, policy_batch=PolicyBatch(TARGETS, sft()))


@pytest.mark.parametrize("name", ["labels", "shift_labels"])
def test_labels_are_refused(name):
    with pytest.raises(TypeError, match=rf"{name} and policy_batch ask for two losses: .*shift\(labels\)"):
        fuse_loss(llama())(input_ids=IDS, **{name: IDS}, policy_batch=PolicyBatch(TARGETS, sft()))


def test_logits_to_keep_is_refused():
    with pytest.raises(ValueError, match="no logits_to_keep"):
        fuse_loss(llama())(input_ids=IDS, logits_to_keep=1, policy_batch=PolicyBatch(TARGETS, sft()))
