"""Checkpoints appear whole or not at all."""

import shutil

import pytest
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from gft.checkpoint import check_space, save_checkpoint

from .runs import config, run


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
    save_checkpoint(policy, tmp_path / "model").rename(tmp_path / ".model.replaced")
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


def test_save_checkpoint_tells_of_a_full_disk_in_the_words_of_others(policy, tmp_path, monkeypatch):
    def full(folder):
        (folder / "part").parent.mkdir()
        (folder / "part").write_text("half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device")

    monkeypatch.setattr(policy.model, "save_pretrained", full)
    with pytest.raises(OSError, match=r"model: the checkpoint cannot be written: .*No space left"):
        save_checkpoint(policy, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_check_space_refuses_a_run_whose_checkpoints_have_no_room(policy, tmp_path, monkeypatch):
    size = 4 * sum(p.numel() for p in policy.model.parameters())
    out = tmp_path / "runs" / "new"
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(0, 0, 3 * size))
    check_space(policy, out, 3)
    with pytest.raises(OSError, match=r"new: the run saves 4 checkpoints of .* GiB are free: make room.*--save-every"):
        check_space(policy, out, 4)


def test_train_asks_for_room_before_anything_is_written(policy, rewards, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(0, 0, 0))
    with pytest.raises(OSError, match="the run saves 2 checkpoints"):
        run(policy, rewards, tmp_path / "new", config(steps=4, save_every=2))
    assert list(tmp_path.iterdir()) == []


def test_save_checkpoint_replaces_a_link_and_not_what_it_leads_to(policy, tmp_path):
    base = save_checkpoint(policy, tmp_path / "base")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model").symlink_to(base)
    for _ in range(2):
        save_checkpoint(policy, tmp_path / "run" / "model")
    assert AutoModelForCausalLM.from_pretrained(base) is not None
    assert [(path.name, path.is_symlink()) for path in (tmp_path / "run").iterdir()] == [("model", False)]
