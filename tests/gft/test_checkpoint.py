"""Checkpoints appear whole or not at all."""

import shutil

import pytest
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from gft.model.policy import load_policy
from gft.runs.checkpoint import check_space, save_model

from .runs import config, run


def full(*args, **kwargs):
    raise OSError("no space left on device")


def test_save_model_replaces_an_older_one_whole(policy, tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    (target / "stale.txt").write_text("x")
    save_model(policy, target)
    assert not (target / "stale.txt").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


def test_save_model_takes_tokenizers_that_save_folders(policy, tmp_path):
    policy.tokenizer.chat_template = {"default": "{{ messages }}", "tools": "{{ tools }}"}
    save_model(policy, tmp_path / "model")
    assert AutoTokenizer.from_pretrained(tmp_path / "model").chat_template == policy.tokenizer.chat_template


def test_save_model_recovers_from_a_crash_between_its_renames(policy, tmp_path, monkeypatch):
    save_model(policy, tmp_path / "model").rename(tmp_path / ".model.replaced")
    monkeypatch.setattr(policy.model, "save_pretrained", full)
    with pytest.raises(OSError, match="no space"):
        save_model(policy, tmp_path / "model")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "model") is not None


def test_save_model_keeps_the_old_one_when_saving_fails(policy, tmp_path, monkeypatch):
    target = save_model(policy, tmp_path / "model")

    monkeypatch.setattr(policy.model, "save_pretrained", full)
    with pytest.raises(OSError, match="no space"):
        save_model(policy, target)
    assert AutoModelForCausalLM.from_pretrained(target) is not None


def test_save_model_tells_of_a_full_disk_in_the_words_of_others(policy, tmp_path, monkeypatch):
    def full(folder):
        (folder / "part").write_text("half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device")

    monkeypatch.setattr(policy.model, "save_pretrained", full)
    with pytest.raises(OSError, match=r"model cannot be written: .*No space left"):
        save_model(policy, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_check_space_refuses_a_run_whose_checkpoints_have_no_room(policy, tmp_path, monkeypatch):
    """Weights and two moments: three times the weights, for those that are kept and a new one."""
    size = 3 * 4 * sum(p.numel() for p in policy.model.parameters())
    out = tmp_path / "runs" / "new"

    def needs(count, **changes):
        settings = config(steps=9, out=out, **changes)
        for free, fits in ((count * size, True), (count * size - 1, False)):
            monkeypatch.setattr(shutil, "disk_usage", lambda folder, free=free: shutil._ntuple_diskusage(0, 0, free))
            if fits:
                check_space(policy, settings)
                continue
            with pytest.raises(
                OSError, match=rf"new: the run needs room for {count} checkpoints of .* make room.*--keep"
            ):
                check_space(policy, settings)

    needs(2)  # that of the end, and one where a signal ended it
    needs(3, save_every=2)
    needs(5, save_every=2, keep=0)
    needs(4, save_every=1, keep=3)
    for step in (2, 4):
        (out / f"checkpoint-{step}").mkdir(parents=True)
    needs(1, save_every=2, resume=True)


def test_train_asks_for_room_before_anything_is_written(policy, rewards, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(0, 0, 0))
    with pytest.raises(OSError, match="the run needs room for 2 checkpoints"):
        run(policy, rewards, tmp_path / "new", config(steps=4))
    assert list(tmp_path.iterdir()) == []


def test_save_model_replaces_a_link_and_not_what_it_leads_to(policy, tmp_path):
    base = save_model(policy, tmp_path / "base")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model").symlink_to(base)
    for _ in range(2):
        save_model(policy, tmp_path / "run" / "model")
    assert AutoModelForCausalLM.from_pretrained(base) is not None
    assert [(path.name, path.is_symlink()) for path in (tmp_path / "run").iterdir()] == [("model", False)]


def test_save_model_lists_every_end_token_for_servers(policy, tmp_path):
    """The end of a chat's turn, where it is not the tokenizer's end token."""
    letter = policy.tokenizer("z").input_ids[0]
    turn = "{% if m['role'] == 'assistant' %}z{% else %}={% endif %}"
    policy.model.generation_config.eos_token_id = [1, letter]
    policy.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}" + turn + "{% endfor %}"
    assert policy.end_tokens == {1, letter}
    policy.model.generation_config.eos_token_id = 1
    saved = GenerationConfig.from_pretrained(save_model(policy, tmp_path / "model"))
    assert saved.eos_token_id == [1, letter]
    assert policy.model.generation_config.eos_token_id == 1
    assert load_policy(tmp_path / "model", device="cpu").end_tokens == {1, letter}
