"""Checkpoints appear whole or not at all."""

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from gft.checkpoint import save_checkpoint


def full(*args, **kwargs):
    raise OSError("no space left on device")


def test_save_checkpoint_replaces_an_older_one_whole(policy, tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    (target / "stale.txt").write_text("x")
    save_checkpoint(policy, target)
    assert not (target / "stale.txt").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


def test_save_checkpoint_takes_tokenizers_that_save_folders(policy, tmp_path):
    policy.tokenizer.chat_template = {"default": "{{ messages }}", "tools": "{{ tools }}"}
    save_checkpoint(policy, tmp_path / "model")
    assert AutoTokenizer.from_pretrained(tmp_path / "model").chat_template == policy.tokenizer.chat_template


def test_save_checkpoint_recovers_from_a_crash_between_its_renames(policy, tmp_path, monkeypatch):
    save_checkpoint(policy, tmp_path / "model").rename(tmp_path / "model.old")
    monkeypatch.setattr(policy.model, "save_pretrained", full)
    with pytest.raises(OSError, match="no space"):
        save_checkpoint(policy, tmp_path / "model")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "model") is not None


def test_save_checkpoint_keeps_the_old_one_when_saving_fails(policy, tmp_path, monkeypatch):
    target = save_checkpoint(policy, tmp_path / "model")

    monkeypatch.setattr(policy.model, "save_pretrained", full)
    with pytest.raises(OSError, match="no space"):
        save_checkpoint(policy, target)
    assert AutoModelForCausalLM.from_pretrained(target) is not None
