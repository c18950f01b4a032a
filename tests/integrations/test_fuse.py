"""fuse_loss: the loss in the model's own forward equals the formula on the model's own logits."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.distributed.utils import _apply_to_tensors
from transformers import AutoModelForCausalLM

from gft_kernels import Backend, GroupRewards, gft, grpo, kl, sft
from gft_kernels.integrations.hf import PolicyBatch, fuse_loss, num_items_weights, shift

from .models import CONFIGS, V, llama, tokens, untrained

IDS = tokens()
TARGETS = IDS[:, 1:].clone()
TARGETS[0, :2] = -100
SHAPE = TARGETS.shape
GIVEN = {
    "advantages": torch.randn(SHAPE),
    "token_weights": torch.rand(SHAPE),
    "old_logprobs": torch.randn(SHAPE) - 3,
    "ref_logprobs": torch.randn(SHAPE) - 3,
}


def own_logprobs(model: nn.Module, temperature: float = 1.0, **inputs: torch.Tensor) -> torch.Tensor:
    """[B, T-1] from the model's own logits."""
    logits = model(input_ids=IDS, **inputs).logits[:, :-1] / temperature
    return logits.log_softmax(-1).gather(2, TARGETS.clamp(min=0)[..., None]).squeeze(2)


def own_loss(model: nn.Module, objective, temperature: float = 1.0) -> torch.Tensor:
    lp, valid = own_logprobs(model, temperature), TARGETS != -100
    per_token = {name: GIVEN[name] for name in ("advantages", "old_logprobs", "ref_logprobs")}
    return (GIVEN["token_weights"] * objective(lp, **per_token))[valid].sum()


def gradients(model: nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_own(model: nn.Module, objective=gft(0.03), temperature: float = 1.0, **batch: object) -> None:  # noqa: B008
    """Loss, log-probs and every gradient of a fused model are those of its own logits."""
    found = model(input_ids=IDS, policy_batch=PolicyBatch(TARGETS, objective, **GIVEN, **batch))
    got, want = gradients(model, found.loss), gradients(model, own_loss(model, objective, temperature))
    torch.testing.assert_close(found.loss, own_loss(model, objective, temperature), rtol=1e-5, atol=1e-6)
    valid = TARGETS != -100
    torch.testing.assert_close(found.logprobs[valid], own_logprobs(model, temperature)[valid], rtol=0, atol=2e-6)
    assert got.keys() == want.keys()
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-4, atol=1e-5 * want[name].abs().max().item() + 1e-9)


@pytest.mark.parametrize("name", CONFIGS)
def test_fused_loss_is_that_of_the_models_own_logits(name):
    assert_own(
        fuse_loss(untrained(name), temperature=0.7, backend=Backend("chunked", skip_rows=False)), temperature=0.7
    )


def test_fused_loss_takes_ratios_penalties_and_a_tau_of_every_token():
    model = fuse_loss(llama(), backend=Backend(skip_rows=False))
    assert_own(model, grpo(0.2, 0.28) + kl(0.1))
    assert_own(model, gft(torch.rand(SHAPE) / 20) + kl(0.1))
    found = model(input_ids=IDS, policy_batch=PolicyBatch(TARGETS, sft(), temperature=0.5)).loss
    torch.testing.assert_close(found, -own_logprobs(model, 0.5)[TARGETS != -100].mean())


def test_fused_model_without_an_objective_gives_differentiable_logprobs():
    model = fuse_loss(untrained("gemma2-softcap"))
    found = model(input_ids=IDS, policy_batch=PolicyBatch(TARGETS))
    valid = TARGETS != -100
    got = gradients(model, (found.logprobs[valid] * GIVEN["advantages"][valid]).sum())
    want = gradients(model, (own_logprobs(model)[valid] * GIVEN["advantages"][valid]).sum())
    assert found.entropy.shape == SHAPE
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-4, atol=1e-6)


def test_advantages_of_sequences_and_group_rewards():
    model, rewards = fuse_loss(llama()), torch.tensor([0.0, 1.0])
    ids = torch.arange(2)[:, None].expand(SHAPE)
    advantages = (rewards - 0.5) / (rewards.std() + 1e-6)
    given = [GroupRewards(rewards, torch.zeros(2, dtype=torch.int64), ids), advantages, advantages[ids]]
    losses = [model(input_ids=IDS, policy_batch=PolicyBatch(TARGETS, gft(), a)).loss for a in given]
    torch.testing.assert_close(losses[0], losses[2])
    torch.testing.assert_close(losses[1], losses[2])


def test_padded_batches_and_micro_batches_add_up():
    model, mask = fuse_loss(llama()), torch.ones_like(IDS)
    mask[1, 5:] = 0
    labels = IDS.masked_fill(mask == 0, -100)
    targets = shift(labels)
    count = (targets != -100).sum()
    whole = PolicyBatch(targets, sft(), token_weights=num_items_weights(targets, count))
    want = model(input_ids=IDS, attention_mask=mask, labels=labels)
    want_gradients = gradients(model, want.loss)
    got = model(input_ids=IDS, attention_mask=mask, policy_batch=whole)
    torch.testing.assert_close(got.loss, want.loss)
    model.zero_grad()
    for row in (slice(0, 1), slice(1, 2)):
        batch = PolicyBatch(targets[row], sft(), token_weights=num_items_weights(targets[row], count))
        model(input_ids=IDS[row], attention_mask=mask[row], policy_batch=batch).loss.backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, want_gradients[name], rtol=1e-4, atol=1e-6)


def test_all_masked_is_zero_with_a_live_graph():
    model = fuse_loss(llama())
    found = model(input_ids=IDS, policy_batch=PolicyBatch(torch.full(SHAPE, -100), sft()))
    assert found.loss == 0
    assert all((g == 0).all() for g in gradients(model, found.loss).values())


@pytest.mark.parametrize("name", ["mixtral", "qwen3-moe"])
def test_router_balancing_is_returned_beside_the_loss(name):
    model = fuse_loss(untrained(name, output_router_logits=True))
    batch = PolicyBatch(TARGETS, sft())
    found = model(input_ids=IDS, policy_batch=batch)
    labels = torch.cat([torch.full_like(IDS[:, :1], -100), TARGETS], 1)
    own = model(input_ids=IDS, labels=labels)
    torch.testing.assert_close(found.loss + found.aux_loss, own.loss)
    got, want = gradients(model, found.loss + found.aux_loss), gradients(model, own.loss)
    for key in want:
        torch.testing.assert_close(got[key], want[key], rtol=1e-4, atol=1e-6)
    assert model(input_ids=IDS, output_router_logits=False, policy_batch=batch).aux_loss is None


def test_terms_of_the_models_own_loss_that_are_not_returned_are_named(recwarn):
    fuse_loss(untrained("mixtral", output_router_logits=True))
    assert not [w for w in recwarn if "own loss" in str(w.message)]
    with pytest.warns(UserWarning, match="adds a penalty on the log-sum-exp"):
        fuse_loss(untrained("bamba", z_loss_coefficient=1e-3))


def test_fused_model_is_what_it_was_without_a_batch(tmp_path):
    plain, model = llama(), fuse_loss(llama())
    assert torch.equal(model(input_ids=IDS).logits, plain(input_ids=IDS).logits)
    given = {"max_new_tokens": 4, "do_sample": False}
    assert torch.equal(model.generate(IDS, **given), plain.generate(IDS, **given))
    assert isinstance(model, type(plain))
    assert isinstance(model.lm_head, nn.Linear)
    model.save_pretrained(tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config.architectures == ["LlamaForCausalLM"]
    parameters = list(inspect.signature(model.forward).parameters)
    assert parameters[:2] == list(inspect.signature(plain.forward).parameters)[:2]
    assert "policy_batch" in parameters


def test_a_copy_has_a_head_of_its_own():
    model = fuse_loss(llama())
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        copied.lm_head.weight.data.mul_(2)
        assert_own(copied)
        assert_own(model)
        found = gradients(copied, copied(input_ids=IDS, policy_batch=PolicyBatch(TARGETS, sft())).loss)
        assert found["lm_head.weight"].abs().max() > 0


def test_a_batch_is_closed_to_wrappers():
    """Mixed precision rebuilds tuples, dicts and dataclasses, their tensors in 16 bits."""
    rewards = GroupRewards(torch.rand(2), torch.zeros(2, dtype=torch.int64), torch.zeros(SHAPE, dtype=torch.int64))
    batch = PolicyBatch(TARGETS, gft(torch.rand(SHAPE)), rewards, old_logprobs=GIVEN["old_logprobs"])
    assert _apply_to_tensors(lambda x: x.bfloat16(), {"policy_batch": batch})["policy_batch"] is batch
    for copied in (copy.deepcopy(batch), pickle.loads(pickle.dumps(batch))):
        assert torch.equal(copied.old_logprobs, batch.old_logprobs)
    assert "old_logprobs=tensor" in repr(batch)


def test_embeddings_resized_afterwards():
    model = fuse_loss(llama())
    model.resize_token_embeddings(V + 9)
    assert_own(model)
    assert len(model.lm_head.weight) == V + 9


def test_fusing_again_changes_the_settings():
    model = fuse_loss(fuse_loss(untrained("granite-divides")), temperature=0.5)
    assert type(model).__mro__.count(type(model)) == 1
    assert_own(model, temperature=0.5)


ATTENTION = LoraConfig(target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
HEAD_SAVED = LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")


@pytest.mark.parametrize("config", [ATTENTION, HEAD_SAVED], ids=["attention", "head saved"])
@pytest.mark.parametrize("fused_first", [True, False])
def test_adapters(config, fused_first):
    model = fuse_loss(llama()) if fused_first else llama()
    model = get_peft_model(model, config)
    assert_own(model if fused_first else fuse_loss(model))


def test_frozen_head_forms_no_gradient_of_its_weight():
    from ..helpers.recorder import Recorder

    model = get_peft_model(fuse_loss(llama()), ATTENTION)
    with Recorder() as recorder:
        model(input_ids=IDS, policy_batch=PolicyBatch(TARGETS, sft())).loss.backward()
    assert (V, 16) not in recorder.shapes


def test_fused_model_under_autocast_computes_in_its_dtype():
    model = fuse_loss(llama())
    with torch.autocast("cpu", torch.bfloat16):
        found = model(input_ids=IDS, policy_batch=PolicyBatch(TARGETS, sft()))
        want = -own_logprobs(model)[TARGETS != -100].mean()
    torch.testing.assert_close(found.loss, want.float(), rtol=5e-3, atol=0)
    assert gradients(model, found.loss)["lm_head.weight"].dtype == torch.float32


@pytest.mark.usefixtures("plain_memory")
def test_compiled_model_is_one_program_for_every_length():
    model = fuse_loss(llama())
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for length in (7, 6, 5, 4):
        ids, targets = IDS[:, :length], TARGETS[:, : length - 1]
        batch = PolicyBatch(targets, gft(0.02 * length), GIVEN["advantages"][:, : length - 1])
        found = [gradients(model, m(input_ids=ids, policy_batch=batch).loss) for m in (compiled, model)]
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)
    assert counter.frame_count <= 2
