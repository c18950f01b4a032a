"""The base: its tokenizer, and that a seed says all about it."""

import pytest
import torch

from gft.demo import base_model


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(base_model, "PRETRAIN_STEPS", 4)


def test_tokenizer_has_a_token_for_every_character():
    encode = base_model.tokenizer()
    ids = encode("qgzb=").input_ids
    assert len(ids) == 5
    assert encode.decode(ids) == "qgzb="
    assert encode.unk_token_id not in ids


@pytest.mark.usefixtures("short")
def test_pretrain_follows_the_seed():
    first, second, other = (base_model.pretrain(seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


@pytest.mark.usefixtures("short")
def test_pretrain_learns_and_tells_of_every_step():
    losses = {}
    model = base_model.pretrain(0, losses.__setitem__)
    assert list(losses) == [0, 1, 2, 3]
    assert losses[3] < losses[0]
    assert not model.training
