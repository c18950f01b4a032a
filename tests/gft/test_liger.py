"""Liger's kernels in the layers of a policy, with our head."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import gft
from gft.model.policy import configure
from gft.settings.parts import ModelConfig

pytest.importorskip("liger_kernel")


@pytest.fixture(scope="module")
def found():
    # The package of this process, which a seeded fault may lie in, and the tests.
    paths = [str(Path(gft.__file__).parents[1]), str(Path(__file__).parents[2])]
    code = f"import runpy, sys; sys.path[:0] = {paths}; runpy.run_module('tests.gft.liger', run_name='__main__')"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["plain", "lora and checkpointing"])
def test_liger_is_in_the_layers_and_gradients_are_those_without(case, found):
    error, kernels = found[case]
    assert kernels == ["LigerRMSNorm", "LigerSwiGLUMLP"]
    assert found["rotary"]
    assert error < 2e-6


@pytest.mark.slow
def test_liger_leaves_no_trace_in_saved_folders(found):
    assert found["saved"]


def test_configure_refuses_liger_on_a_cpu(policy, monkeypatch):
    monkeypatch.setitem(os.environ, "TRITON_INTERPRET", "0")
    with pytest.raises(ValueError, match=r"--liger needs a GPU.*leave it out"):
        configure(policy, ModelConfig(liger=True))


def test_configure_refuses_liger_for_types_that_it_lacks(policy, monkeypatch):
    monkeypatch.setitem(os.environ, "TRITON_INTERPRET", "1")
    policy.model.config.model_type = "ctrl"
    with pytest.raises(ValueError, match=r"no kernels for the model type ctrl. It has .*llama, .*qwen2, "):
        configure(policy, ModelConfig(liger=True))


def test_configure_says_how_liger_is_installed(policy, monkeypatch):
    monkeypatch.setitem(os.environ, "TRITON_INTERPRET", "1")
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers.monkey_patch", None)
    with pytest.raises(ImportError, match=r"--liger needs Liger: pip install 'gft-kernels\[liger\]'"):
        configure(policy, ModelConfig(liger=True))


def test_configure_says_how_peft_is_installed(policy, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"--lora is 3 and needs PEFT: pip install 'gft-kernels\[lora\]'"):
        configure(policy, ModelConfig(lora=3))
