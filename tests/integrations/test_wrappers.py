"""Wrapped models: taken out exactly where nothing is lost, refused with the way out elsewhere."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor, Replicate, Shard, init_device_mesh

from gft_kernels.integrations.hf import split_head

from .models import V, llama, nll_gradients, tokens, untrained

peft = pytest.importorskip("peft")


@pytest.fixture(scope="module")
def processes():
    """A process group of one: enough to wrap, nothing to wait for."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def lora(model: nn.Module | None = None, targets: tuple[str, ...] = ("q_proj", "v_proj"), **options: object):
    torch.manual_seed(0)
    config = peft.LoraConfig(target_modules=list(targets), task_type="CAUSAL_LM", init_lora_weights=False, **options)
    return peft.get_peft_model(model or llama(), config)


def assert_gradients_are_the_models_own(model: nn.Module) -> set[str]:
    """Names of the parameters that have one."""
    parts = split_head(model)
    found, own = nll_gradients(model, parts), nll_gradients(model, None)
    assert found.keys() == own.keys()
    largest = max(gradient.abs().max().item() for gradient in own.values())
    assert largest > 1e-4
    for name, gradient in own.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=min(1e-5, 1e-4 * largest))
    return {name.rpartition("layers.0.")[2] for name in own}


def test_lora_on_attention_trains_as_the_whole_model_does():
    model = lora(llama())
    before = copy.deepcopy(model.state_dict())
    named = assert_gradients_are_the_models_own(model)
    assert {f"self_attn.q_proj.lora_{part}.default.weight" for part in "AB"} <= named
    assert all("lora" in name for name in named)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_lora_put_into_the_model_without_a_wrapper():
    model = peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False), llama())
    assert any("lora_B" in name for name in assert_gradients_are_the_models_own(model))


def test_a_head_of_the_adapters_own_is_the_one_taken():
    model = lora(modules_to_save=["lm_head"])
    model.get_base_model().lm_head.modules_to_save["default"].weight.data.add_(0.1)
    assert "base_model.model.lm_head.modules_to_save.default.weight" in assert_gradients_are_the_models_own(model)
    with model.disable_adapter():
        assert split_head(model).weight is model.get_base_model().lm_head.original_module.weight


def test_the_active_of_several_adapters_is_taken():
    model = lora(modules_to_save=["lm_head"])
    config = peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"], init_lora_weights=False)
    model.add_adapter("second", config)
    heads = model.get_base_model().lm_head.modules_to_save
    assert split_head(model).weight is heads["default"].weight
    model.set_adapter("second")
    assert split_head(model).weight is heads["second"].weight
    assert_gradients_are_the_models_own(model)
    assert model.active_adapter == "second"


def test_merged_adapters_count_and_stay_merged():
    model = lora()
    model.merge_adapter()
    split = split_head(model)
    own = model(tokens()).logits.log_softmax(-1)
    hidden = split.backbone(tokens()).last_hidden_state
    torch.testing.assert_close((hidden @ split.weight.T).log_softmax(-1), own, rtol=0, atol=2e-6)
    assert model.get_base_model().model.layers[0].self_attn.q_proj.merged
    assert split_head(lora().merge_and_unload()).weight.shape == (V, 16)


@pytest.mark.parametrize("method", ["IA3Config", "LoHaConfig", "VeraConfig", "OFTConfig"])
def test_other_adapters_in_the_layers(method):
    options = {"OFTConfig": {"oft_block_size": 0, "r": 2}, "IA3Config": {"feedforward_modules": []}}.get(method, {})
    config = getattr(peft, method)(target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **options)
    assert assert_gradients_are_the_models_own(peft.get_peft_model(llama(), config))


def test_mixed_adapters():
    config = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    assert split_head(peft.PeftMixedModel(llama(), config, "default")).backbone is not None


def test_the_term_of_adalora_is_named():
    config = peft.AdaLoraConfig(
        target_modules=["q_proj"], task_type="CAUSAL_LM", total_step=10, init_lora_weights=False
    )
    with pytest.warns(UserWarning, match="own loss of PeftModelForCausalLM adds .*orthogonality"):
        split_head(peft.get_peft_model(llama(), config))


def prompts(**options: object):
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2, **options)
    return peft.get_peft_model(llama(), config)


def prefixes():
    return peft.get_peft_model(llama(), peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))


def aloras():
    return lora(alora_invocation_tokens=[5])


def trained_tokens():
    config = peft.LoraConfig(target_modules=["q_proj"], trainable_token_indices={"lm_head": [3]}, task_type="CAUSAL_LM")
    return peft.get_peft_model(llama(), config)


ADAPTERS = {
    "prompt tuning": (prompts, r"'default' \(PROMPT_TUNING\) puts virtual tokens before the text"),
    "prefix tuning": (prefixes, r"'default' \(PREFIX_TUNING\) puts virtual tokens before the text"),
    "activated LoRA": (aloras, r"'default' \(LORA\) acts in the wrapper's forward"),
    "LoRA on the head": (
        lambda: lora(targets=("q_proj", "lm_head")),
        r"has LoRA.*use fuse_loss.*Leave the head out .*merge",
    ),
    "single tokens of the head": (trained_tokens, r"head is \S*TrainableTokensWrapper.*Leave the head out"),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_that_the_parts_would_leave_out_are_refused(name):
    make, message = ADAPTERS[name]
    with pytest.raises(TypeError, match=message + r".*logits_policy_loss"):
        split_head(make())


def test_a_compiled_model_is_taken_out_and_not_compiled():
    model = llama()
    compiled = torch.compile(model, backend=refuse_to_compile)
    with pytest.warns(UserWarning, match=r"not compiled: compile it alone"):
        parts = split_head(compiled)
    assert parts.backbone is model.model
    assert parts.weight is model.lm_head.weight


def test_a_model_compiled_in_place_is_verified_without_compiling():
    model = llama()
    model.compile(backend=refuse_to_compile)
    model.model.layers[0].compile(backend=refuse_to_compile)
    assert split_head(model).backbone is model.model


def refuse_to_compile(graph, inputs):
    raise AssertionError("splitting compiles nothing")


def test_a_compiled_adapter():
    with pytest.warns(UserWarning, match="not compiled"):
        assert "lora_A" in str(split_head(torch.compile(lora())).backbone)


class DeepSpeedEngine(nn.Module):
    """As deepspeed's: a module that holds the model and steps itself."""

    def __init__(self) -> None:
        super().__init__()
        self.module = llama()


def fsdp1(mesh):
    from torch.distributed.fsdp import FullyShardedDataParallel

    return FullyShardedDataParallel(llama(), device_id=torch.device("cpu"))


def fsdp2(mesh):
    from torch.distributed.fsdp import fully_shard

    return fully_shard(llama(), mesh=mesh)


def fsdp2_layers(mesh):
    from torch.distributed.fsdp import fully_shard

    model = llama()
    fully_shard(model.model.layers[0], mesh=mesh)
    return model


def tensor_parallel(mesh):
    model = llama()
    model.lm_head.weight = nn.Parameter(DTensor.from_local(model.lm_head.weight.data, mesh, [Shard(0)]))
    return model


def replicated(mesh):
    model = llama()
    model.lm_head.weight = nn.Parameter(DTensor.from_local(model.lm_head.weight.data, mesh, [Replicate()]))
    return model


def backbone_in_ddp(mesh):
    model = llama()
    model.model = nn.parallel.DistributedDataParallel(model.model)
    return model


DISTRIBUTED = {
    "DDP": (lambda mesh: nn.parallel.DistributedDataParallel(llama()), r"in DistributedDataParallel.*average every"),
    "DDP of LoRA": (lambda mesh: nn.parallel.DistributedDataParallel(lora()), r"in DistributedDataParallel"),
    "DDP compiled": (
        lambda mesh: torch.compile(nn.parallel.DistributedDataParallel(llama())),
        r"in DistributedDataParallel",
    ),
    "DDP of the backbone": (backbone_in_ddp, r"model\.model is wrapped in DistributedDataParallel"),
    "DataParallel": (lambda mesh: nn.DataParallel(llama()), r"in DataParallel.*split model\.module, on one GPU"),
    "FSDP1": (fsdp1, r"in FullyShardedDataParallel, which gathers weights"),
    "FSDP2": (fsdp2, r"in FSDPModule, which gathers weights"),
    "FSDP2 of a layer": (fsdp2_layers, r"model\.model\.layers\.0 is wrapped in FSDPModule"),
    "DeepSpeed": (lambda mesh: DeepSpeedEngine(), r"in DeepSpeedEngine, which reduces gradients"),
    "tensor parallel": (tensor_parallel, r"lm_head\.weight is a DTensor.*a copy gathered once would go stale"),
    "replicated": (replicated, r"lm_head\.weight is a DTensor"),
}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*FSDP.*", "ignore:.*not compiled")
@pytest.mark.parametrize("name", DISTRIBUTED)
def test_wrappers_that_synchronise_are_refused(name, processes):
    make, message = DISTRIBUTED[name]
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        split_head(make(processes))
    assert "call `logits_policy_loss` on the logits of model(...)" in str(caught.value)
    assert "full_tensor" not in str(caught.value)


def test_autocast_by_accelerate_is_refused_and_taken_off(fresh_accelerate):
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(mixed_precision="bf16", cpu=True)
    model = accelerator.prepare(llama())
    with pytest.raises(TypeError, match=r"accelerate has put autocast.*keep_fp32_wrapper=False"):
        split_head(model)
    assert split_head(accelerator.unwrap_model(model, keep_fp32_wrapper=False)).weight is model.lm_head.weight


def test_split_head_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        assert split_head(untrained("granite-divides")).head.scale == 0.25
