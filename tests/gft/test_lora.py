"""LoRA: what is trained, saved, gone on with, and what the model without it is."""

import copy
import shutil
from dataclasses import replace

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM

from gft import cli
from gft.demo.base_model import tokenizer, untrained
from gft.groups import Member
from gft.model.lora import save_adapter
from gft.model.policy import configure, load_policy, make_policy
from gft.optim import make_optimizer, names
from gft.reference import make_reference
from gft.runs.checkpoint import ADAPTER, Checkpoints, check_space, newest_whole, save_model
from gft.runs.record import read_record
from gft.runs.state import RunState, random_state
from gft.settings.parts import GroupConfig, ModelConfig, OptimConfig
from gft.stop import Stopped
from gft_kernels import gft

from .faults.tiny import command, make_inputs
from .runs import EXAMPLES, config, numbers, run, weights
from .test_layers import GPT, LLAMA, assert_equal, gradients_of, loss_of
from .test_resume import stop_at

RANK_3 = ModelConfig(lora=3)
HEAD_TOO = ModelConfig(lora=3, lora_targets="q_proj,lm_head")
SETTINGS = config(
    steps=5, group=GroupConfig(1, 1, 2), optim=OptimConfig(lr=3e-2, micro_batch=5, warmup=2), network=RANK_3
)
TOKENS = torch.arange(2, 20).view(2, 9)


def lora_policy(network=RANK_3, seed=0, adapter=None, model=None):
    return configure(make_policy(model or untrained(0).eval(), tokenizer()), network, seed=seed, adapter=adapter)


def moved(policy, seed=5):
    """Factors that are no longer 0."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in policy.model.named_parameters():
            if "lora_" in name:
                p.copy_(torch.randn(p.shape, generator=g) / 4)
    return policy


def test_add_lora_trains_factors_alone_and_starts_at_the_model():
    policy, plain = lora_policy(), make_policy(untrained(0).eval(), tokenizer())
    trained = {name for name, p in policy.model.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in policy.model.named_parameters() if ".lora_" in name}
    assert len(trained) == 2 * 2 * 7  # A and B, two layers, seven matrices each
    assert {p.dtype for p in policy.model.parameters()} == {torch.float32}
    assert torch.equal(loss_of(policy).logprobs, loss_of(plain).logprobs)
    assert sorted(names(make_optimizer(policy.model, OptimConfig()))) == sorted(trained)


def test_add_lora_is_seeded():
    factors = [
        {n: p for n, p in lora_policy(seed=seed).model.named_parameters() if ".lora_A" in n} for seed in (1, 1, 2)
    ]
    assert all(torch.equal(p, factors[1][n]) for n, p in factors[0].items())
    assert not any(torch.equal(p, factors[2][n]) for n, p in factors[0].items())


@pytest.mark.parametrize("targets", ["all-linear", "q_proj,lm_head"])
def test_gradients_of_lora_are_those_of_the_products(targets):
    """By autograd through the full logits of a plain model whose weights are W + 2 B A."""
    policy = moved(lora_policy(ModelConfig(lora=3, lora_targets=targets)))
    _, found = gradients_of(policy)
    plain = untrained(0).double().eval()
    factors = {n: p.detach().double().requires_grad_() for n, p in policy.model.named_parameters() if "lora_" in n}
    products = {}
    for name, a in factors.items():
        if ".lora_A." in name:
            b = factors[name.replace("lora_A", "lora_B")]
            products[name.partition(".lora_A")[0] + ".weight"] = 2 * b @ a
    state = dict(plain.named_parameters())
    tied = {"lm_head.weight": state["model.embed_tokens.weight"]}
    whole = {name: value.detach() + products.get(name, 0) for name, value in {**state, **tied}.items()}
    g = torch.Generator().manual_seed(1)
    tokens = torch.randint(2, 29, (3, 9), generator=g)
    logits = torch.func.functional_call(plain, whole, (tokens,), tie_weights=False).logits
    lp = logits[:, :-1].log_softmax(-1).gather(2, tokens[:, 1:, None]).squeeze(2)
    (2 * gft(0.03)(lp, advantages=torch.tensor([1.0, -1.0, 0.5])[:, None]).mean()).backward()
    for name, grad in found.items():
        torch.testing.assert_close(grad.double(), factors[name].grad, rtol=1e-4, atol=1e-6, msg=name)


def test_checkpointing_changes_no_bit_of_the_gradients_of_lora():
    plain, again = (moved(lora_policy(replace(RANK_3, checkpointing=c))) for c in (False, True))
    assert len(gradients_of(again)[1]) == 28
    assert_equal(gradients_of(again), gradients_of(plain))


@pytest.mark.parametrize("network", [RANK_3, HEAD_TOO], ids=["all-linear", "head"])
def test_save_model_merges_and_leaves_the_live_model_alone(network, tmp_path):
    policy = moved(lora_policy(network))
    before = {name: p.clone() for name, p in policy.model.state_dict().items()}
    with torch.no_grad():
        wanted = policy.model(TOKENS).logits
    folder = save_model(policy, tmp_path / "model")
    assert before.keys() == policy.model.state_dict().keys()
    assert all(torch.equal(p, before[name]) for name, p in policy.model.state_dict().items())
    assert not (folder / "adapter_config.json").exists()
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert type(loaded).__name__ == "Qwen2ForCausalLM"
    with torch.no_grad():
        torch.testing.assert_close(loaded(TOKENS).logits, wanted, rtol=1e-4, atol=1e-5)
    tied = loaded.lm_head.weight.data_ptr() == loaded.model.embed_tokens.weight.data_ptr()
    assert tied == loaded.config.tie_word_embeddings == (network is RANK_3)  # vLLM ties by the config alone
    # PEFT's own merge, to the bit
    copied = copy.deepcopy(policy.adapter)
    if network is RANK_3:
        merged = copied.merge_and_unload().state_dict()
        assert all(torch.equal(value, merged[name]) for name, value in loaded.state_dict().items())
    assert load_policy(folder, device="cpu").adapter is None


def test_save_adapter_is_a_folder_of_peft(tmp_path):
    base = save_model(make_policy(untrained(0).eval(), tokenizer()), tmp_path / "base")
    policy = moved(configure(load_policy(base, device="cpu"), RANK_3))
    save_adapter(policy.adapter, tmp_path / "adapter")
    with torch.no_grad():
        wanted = policy.model(TOKENS).logits
        for found in (
            PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter"),
            AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter"),
        ):
            torch.testing.assert_close(found(TOKENS).logits, wanted, rtol=0, atol=0)


def test_save_merged_takes_layers_that_keep_their_weight_transposed(tmp_path):
    policy = moved(lora_policy(model=GPT2LMHeadModel(GPT2Config(**GPT)).eval()))
    loaded = AutoModelForCausalLM.from_pretrained(save_model(policy, tmp_path / "model"))
    with torch.no_grad():
        torch.testing.assert_close(loaded(TOKENS).logits, policy.model(TOKENS).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("targets", "message"),
    [("nowhere", "which does not suit the model: .*nowhere"), ("embed_tokens", "is no linear")],
)
def test_add_lora_refuses_targets_by_name(targets, message):
    with pytest.raises(ValueError, match=f"--lora-targets is {targets}.*{message}"):
        lora_policy(ModelConfig(lora=2, lora_targets=targets))


# Runs


def resume_lora(rewards, out, settings):
    """As `gft train --resume` does: the base of the beginning, the factors of the checkpoint."""
    start = newest_whole(out, read_record(out)["run"], lambda text: None)
    policy = lora_policy(settings.network, settings.seed, adapter=start / ADAPTER if start else None)
    return run(policy, rewards, out, replace(settings, resume=True), start=start)


@pytest.mark.parametrize("k", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_resume_of_a_lora_run_is_bitwise(k, rewards, tmp_path, monkeypatch):
    policy = lora_policy()
    before = {n: p.clone() for n, p in policy.model.named_parameters() if not p.requires_grad}
    _, rows = run(policy, rewards, tmp_path / "whole", SETTINGS)
    assert all(torch.equal(p, before[n]) for n, p in policy.model.named_parameters() if n in before)
    assert all(p.abs().max() > 0 for n, p in policy.model.named_parameters() if "lora_B" in n)
    with monkeypatch.context() as patch:
        stop_at(patch, "train.make_batch", k)
        with pytest.raises(Stopped):
            run(lora_policy(), rewards, tmp_path / "cut", SETTINGS)
    _, again = resume_lora(rewards, tmp_path / "cut", SETTINGS)
    assert numbers(again) == numbers(rows)
    for name in ("model/model.safetensors", "adapter/adapter_model.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()
    assert weights(tmp_path / "whole" / "model") != {}
    saved = tmp_path / "whole" / "checkpoint-5"
    assert sorted(path.name for path in saved.iterdir()) == [
        "adapter",
        "manifest.json",
        "optimizer.safetensors",
        "state.json",
    ]


def test_checkpoint_of_a_lora_run_refuses_factors_of_another_rank(tmp_path):
    policy = lora_policy()
    optimizer = make_optimizer(policy.model, OptimConfig())
    path = Checkpoints(tmp_path, "run", policy, optimizer, []).save(RunState(random=random_state(policy.device)))
    for network in (ModelConfig(lora=4), ModelConfig(lora=3, lora_targets="q_proj")):
        with pytest.raises(ValueError, match="factors of other layers or of another rank"):
            lora_policy(network, adapter=path / ADAPTER)


def test_check_space_counts_factors_and_one_whole_model(tmp_path, monkeypatch):
    policy = lora_policy()
    sizes = [p.numel() * 4 for p in policy.model.parameters()]
    trained = [p.numel() * 4 for p in policy.model.parameters() if p.requires_grad]
    room = 2 * 3 * sum(trained) + sum(sizes)
    for free, fits in ((room, True), (room - 1, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda folder, free=free: shutil._ntuple_diskusage(0, 0, free))
        if fits:
            check_space(policy, replace(SETTINGS, out=tmp_path))
            continue
        with pytest.raises(OSError, match=r"2 checkpoints of .* GiB and for a model of .* GiB, and"):
            check_space(policy, replace(SETTINGS, out=tmp_path))


def test_gft_train_with_lora_resumes_and_leaves_a_model_to_evaluate(tmp_path, monkeypatch):
    monkeypatch.setattr("gft.commands.train.run_figure", lambda rows, path: path)
    make_inputs(tmp_path)
    base, out = tmp_path / "base", tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(patch, "train.make_batch", 3)
        with pytest.raises(SystemExit):
            cli.main(command(tmp_path, out, "--lora", "2", "--lr", "0.1"))
    assert (out / "checkpoint-2" / "adapter").is_dir()
    cli.main(["train", "--resume", "--out", str(out)])
    merged = AutoModelForCausalLM.from_pretrained(out / "model")
    wanted = AutoPeftModelForCausalLM.from_pretrained(out / "adapter").merge_and_unload()
    assert all(torch.equal(p, q) for p, q in zip(merged.parameters(), wanted.parameters(), strict=True))
    assert not torch.equal(merged(TOKENS).logits, AutoModelForCausalLM.from_pretrained(base)(TOKENS).logits)


# The reference policy


WITH_DROPOUT = replace(HEAD_TOO, dropout=True, checkpointing=True)
MEMBERS = [Member(0, "self", [2, 3, 4], list(range(5, 5 + n)), "", False, EXAMPLES[0]) for n in (6, 4)]


def own_logprobs(model):
    """log p of the responses, from the model's own logits."""
    found = []
    for m in MEMBERS:
        with torch.no_grad():
            logits = model(torch.tensor([m.prompt + m.response])).logits[0, len(m.prompt) - 1 : -1]
        found.append(logits.log_softmax(-1)[range(len(m.response)), m.response].tolist())
    return found


@pytest.mark.parametrize("network", [ModelConfig(), RANK_3, WITH_DROPOUT], ids=["whole", "lora", "head"])
def test_reference_is_the_model_that_the_run_began_with(network):
    model = Qwen2ForCausalLM(Qwen2Config(**LLAMA, num_key_value_heads=2, attention_dropout=0.5)).eval()
    policy = lora_policy(network, model=model)
    wanted = own_logprobs(policy.model)
    trained = [p for p in policy.model.parameters() if p.requires_grad]
    reference = make_reference(policy)
    with torch.no_grad():
        for p in trained:
            p.add_(0.1)
    policy.learn()
    modes = [m.training for m in policy.model.modules()]
    torch.manual_seed(0)
    before = loss_of(policy)
    for found, of_member in zip(reference.logprobs(MEMBERS, config()), wanted, strict=True):
        assert found == pytest.approx(of_member, rel=1e-5)
    torch.manual_seed(0)
    assert torch.equal(loss_of(policy).logprobs, before.logprobs)
    assert modes == [m.training for m in policy.model.modules()]
    assert len(trained) == sum(p.requires_grad for p in policy.model.parameters())


def test_reference_of_another_policy_is_that_policy():
    policy, other = lora_policy(), make_policy(untrained(1).eval(), tokenizer())
    found = make_reference(policy, other).logprobs(MEMBERS, config())
    assert found[0] == pytest.approx(own_logprobs(other.model)[0], rel=1e-5)
    assert not any(p.requires_grad for p in other.model.parameters())


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        ("q_proj,typo_proj", "no layer is named 'typo_proj'"),
        ("all-linear,lm_head", "all-linear stands alone"),
        ("typo_proj", "does not suit the model"),
    ],
)
def test_add_lora_refuses_targets_that_peft_would_pass_over(targets, said):
    with pytest.raises(ValueError, match=f"--lora-targets is {targets}.*{said}"):
        lora_policy(ModelConfig(lora=2, lora_targets=targets))


def test_add_lora_takes_a_list_with_spaces():
    policy = lora_policy(ModelConfig(lora=2, lora_targets="q_proj, v_proj"))
    trained = {name.split(".")[-4] for name, p in policy.model.named_parameters() if p.requires_grad}
    assert trained == {"q_proj", "v_proj"}
