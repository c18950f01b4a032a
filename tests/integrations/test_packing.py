"""Packed rows: sequences in one row have the loss and the gradients of the padded batch."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import DataCollatorWithFlattening

from gft_kernels import GroupRewards, gft, grpo, gspo, sft
from gft_kernels.integrations.hf import PolicyBatch, fuse_loss, pack, shift

from .models import CONFIGS, V, untrained

G = torch.Generator().manual_seed(3)
SEQUENCES = [torch.randint(3, V, (n,), generator=G) for n in (5, 1, 3, 7)]
LABELS = [x.clone() for x in SEQUENCES]
LABELS[3][:3] = -100  # a prompt
REWARDS, GROUPS = torch.tensor([1.0, 0.0, 0.0, 1.0]), torch.zeros(4, dtype=torch.int64)
OLD = [torch.randn(len(x) - 1, generator=G) - 3 for x in SEQUENCES]
CARRIES_ITS_STATE = "recurrent-gemma-softcap"
OPTIONS = {"attention_dropout": 0.0, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}


def fused(name: str = "llama", attention: str = "eager") -> nn.Module:
    model = untrained(name, **(OPTIONS if name == "gpt2" else {})).train()
    model.set_attn_implementation(attention)
    return fuse_loss(model)


def padded(values: list[torch.Tensor], fill: float) -> torch.Tensor:
    return nn.utils.rnn.pad_sequence(values, batch_first=True, padding_value=fill)


def padded_batch() -> tuple[dict[str, torch.Tensor], PolicyBatch]:
    ids, mask = padded(SEQUENCES, 0), padded([torch.ones_like(x) for x in SEQUENCES], 0)
    targets = shift(padded(LABELS, -100))
    rewards = GroupRewards(REWARDS, GROUPS, torch.arange(4)[:, None].expand_as(targets))
    batch = PolicyBatch(targets, grpo(), rewards, old_logprobs=padded(OLD, 0.0))
    return {"input_ids": ids, "attention_mask": mask}, batch


def packed_batch() -> tuple[dict[str, torch.Tensor], PolicyBatch]:
    packed = pack(SEQUENCES, LABELS)
    rewards = GroupRewards(REWARDS, GROUPS, packed.sequence_ids)
    return packed.inputs, PolicyBatch(packed.targets, grpo(), rewards, old_logprobs=packed.join(OLD))


def loss_and_gradients(model: nn.Module, inputs, batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    found = model(**inputs, policy_batch=batch)
    found.loss.backward()
    return found, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", [name for name in CONFIGS if name != CARRIES_ITS_STATE])
def test_packed_loss_is_that_of_the_padded_batch(name, attention):
    if (name, attention) == ("gemma2-softcap", "sdpa"):
        pytest.skip("transformers has no sdpa with a soft cap")
    model = fused(name, attention)
    got, got_gradients = loss_and_gradients(model, *packed_batch())
    want, want_gradients = loss_and_gradients(model, *padded_batch())
    torch.testing.assert_close(got.loss, want.loss, rtol=1e-5, atol=1e-6)
    assert got_gradients.keys() == want_gradients.keys()
    for key, gradient in want_gradients.items():
        torch.testing.assert_close(got_gradients[key], gradient, rtol=0, atol=1e-5 * gradient.abs().max().item())
    for row, (one, labels) in enumerate(zip(pack(SEQUENCES, LABELS).split(got.logprobs), LABELS, strict=True)):
        valid = labels[1:] != -100
        torch.testing.assert_close(one[valid], want.logprobs[row, : len(one)][valid], rtol=0, atol=2e-6)


def test_ratios_of_packed_sequences_are_theirs():
    model, packed = fused(), pack(SEQUENCES, LABELS)
    advantages, old = torch.tensor([1.0, -2.0, 0.5, -1.0]), packed.join(OLD)
    inputs, padded_rows = padded_batch()
    rows = PolicyBatch(padded_rows.targets, gspo(), advantages, old_logprobs=padded_rows.old_logprobs)
    of_tokens = advantages[packed.sequence_ids]
    apart = PolicyBatch(packed.targets, gspo(sequence_ids=packed.sequence_ids), of_tokens, old_logprobs=old)
    want, want_gradients = loss_and_gradients(model, inputs, rows)
    got, got_gradients = loss_and_gradients(model, packed.inputs, apart)
    torch.testing.assert_close(got.loss, want.loss, rtol=1e-5, atol=1e-6)
    for key, gradient in want_gradients.items():
        torch.testing.assert_close(got_gradients[key], gradient, rtol=0, atol=1e-5 * gradient.abs().max().item())
    as_one = PolicyBatch(packed.targets, gspo(), of_tokens, old_logprobs=old)
    with pytest.raises(ValueError, match=r"would take it for one.*gspo\(sequence_ids=packed\.sequence_ids\)"):
        model(**packed.inputs, policy_batch=as_one)


def test_pack_is_transformers_flattening():
    """The same row, so a batch of that collator needs `shift` alone."""
    features = [{"input_ids": x, "labels": y} for x, y in zip(SEQUENCES, LABELS, strict=True)]
    flat = DataCollatorWithFlattening(return_tensors="pt", return_flash_attn_kwargs=True)(features)
    packed = pack(SEQUENCES, LABELS)
    for name in ("input_ids", "position_ids"):
        assert torch.equal(packed.inputs[name], flat[name])
    assert torch.equal(packed.targets, shift(flat["labels"]))
    for name, value in packed.flash_arguments().items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(flat[name]))
        assert getattr(value, "dtype", None) == getattr(flat[name], "dtype", None)


def test_join_and_split_are_inverse():
    packed = pack(SEQUENCES)
    joined = packed.join(OLD)
    assert joined.shape == packed.targets.shape == packed.sequence_ids.shape
    assert all(torch.equal(a, b) for a, b in zip(packed.split(joined), OLD, strict=True))
    assert (joined[packed.targets == -100] == 0).all()  # labels are on every token, so these are seams
    assert torch.equal(packed.sequence_ids[0], torch.tensor([0] * 5 + [1] + [2] * 3 + [3] * 6))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pack([]), "no sequences to pack"),
        (lambda: pack([SEQUENCES[0], torch.ones(1, 3)]), r"sequence 1 has shape \(1, 3\)"),
        (lambda: pack([SEQUENCES[0][:0]]), r"sequence 0 has shape \(0,\)"),
        (lambda: pack(SEQUENCES, LABELS[:2]), r"labels have shapes \[\(5,\), \(1,\)\]"),
        (lambda: pack(SEQUENCES).join(SEQUENCES), r"lengths \[5, 1, 3, 7\]; .* lengths \[4, 0, 2, 6\]"),
    ],
)
def test_sequences_that_cannot_be_packed_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def one_mask(inputs):
    return {**inputs, "attention_mask": torch.ones_like(inputs["input_ids"])}


def by_position(model, inputs, batch):
    return model(inputs["input_ids"], torch.ones_like(inputs["input_ids"]), inputs["position_ids"], policy_batch=batch)


def with_cache(model, inputs, batch):
    cache = model(input_ids=SEQUENCES[0][None], use_cache=True).past_key_values
    return model(**inputs, past_key_values=cache, policy_batch=batch)


def flash_of_two_rows(model, inputs, batch):
    model.config._attn_implementation = "flash_attention_2"
    inputs = {name: x.repeat(2, 1) for name, x in inputs.items()}
    return model(**inputs, policy_batch=PolicyBatch(batch.targets.repeat(2, 1), sft()))


LEAKS = {
    "a mask": ("llama", lambda m, x, b: m(**one_mask(x), policy_batch=b), r"attention_mask \[B, T\].*leave attention"),
    "a mask by position": ("llama", by_position, "leave attention_mask out"),
    "a cache": ("llama", with_cache, "with a cache .*leave the cache out"),
    "a state": (CARRIES_ITS_STATE, lambda m, x, b: m(**x, policy_batch=b), "carries its state.*give a padded batch"),
    "flash-attn, two rows": ("llama", flash_of_two_rows, "of one row alone, not of 2. Then pack into one row"),
}


@pytest.mark.parametrize(("name", "call", "message"), LEAKS.values(), ids=LEAKS)
def test_packed_rows_that_would_leak_are_refused(name, call, message):
    inputs, batch = packed_batch()
    with pytest.raises(ValueError, match=r"position_ids start again: .*" + message):
        call(fused(name), inputs, batch)


def test_padded_rows_with_positions_of_their_own_are_taken():
    """Left padding, its positions all 1, as trainers make them."""
    model = fused()
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    ids = torch.randint(3, V, mask.shape, generator=G)
    positions = (mask.cumsum(1) - 1).masked_fill(mask == 0, 1)
    targets = shift(ids.masked_fill(mask == 0, -100))
    found = model(input_ids=ids, attention_mask=mask, position_ids=positions, policy_batch=PolicyBatch(targets, sft()))
    alone = model(input_ids=ids[:1, 2:], policy_batch=PolicyBatch(ids[:1, 3:], sft())).logprobs
    torch.testing.assert_close(found.logprobs[:1, 2:], alone, rtol=0, atol=2e-6)
    plain = model(input_ids=ids, position_ids=torch.arange(6)[None], policy_batch=PolicyBatch(ids[:, 1:], sft()))
    assert plain.loss.isfinite()


def test_a_model_that_carries_its_state_is_trained_on_padded_batches():
    model = fused(CARRIES_ITS_STATE)
    assert not model._fused.tells_apart
    inputs, batch = padded_batch()
    assert model(**inputs, policy_batch=batch).loss.isfinite()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="flash-attn runs on GPUs")
@pytest.mark.parametrize("told", ["positions", "ends"])
def test_packed_loss_with_flash_attention(told):
    pytest.importorskip("flash_attn")
    model = untrained("llama", hidden_size=64).to("cuda", torch.bfloat16).train()
    model.set_attn_implementation("flash_attention_2")
    fuse_loss(model)
    assert model._fused.tells_apart
    packed = pack([x.cuda() for x in SEQUENCES])
    given = packed.flash_arguments() if told == "ends" else {}
    row = model(**packed.inputs, **given, policy_batch=PolicyBatch(packed.targets, gft(), packed.targets * 0.0 + 1))
    for one, x in zip(packed.split(row.logprobs), SEQUENCES, strict=True):
        if len(x) > 1:
            x = x.cuda()[None]
            alone = model(input_ids=x, policy_batch=PolicyBatch(x[:, 1:], sft())).logprobs[0]
            torch.testing.assert_close(one, alone, rtol=0, atol=2e-2)
