"""Kernels of Liger in the layers, and its loss in the forward, together with the fused loss."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytest.importorskip("liger_kernel")

EXACT = ("layers", "layers and loss", "layers of an instance", "layers of a fused instance")


@pytest.fixture(scope="module")
def found() -> dict[str, object]:
    command = [sys.executable, "-m", "tests.integrations.liger"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


@pytest.mark.parametrize("case", EXACT)
def test_fused_loss_is_exact_with_kernels_of_liger(case, found):
    error, kernels = found[case]
    assert kernels == ["LigerRMSNorm", "LigerSwiGLUMLP"]
    assert error < 2e-6


@pytest.mark.parametrize("case", ["loss of a fused instance", "loss of an instance"])
def test_loss_of_liger_in_an_instance_is_refused(case, found):
    assert found[case].startswith("TypeError: Liger gives this LlamaForCausalLM a forward with a loss of its own.")
    assert '{"fused_linear_cross_entropy": False}' in found[case]


def test_labels_beside_a_batch_are_refused(found):
    assert found["labels too"].startswith("TypeError: labels and policy_batch ask for two losses")
