"""The benchmark's peers: each computes the GFT loss, and one that is missing says why."""

from __future__ import annotations

import os
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from benchmarks.heads.peers import PEERS, Peer, find_peers
from benchmarks.inputs.cases import TINY_CASES, make_batch

INTERPRETED = (
    ["liger-flce"] if os.environ.get("TRITON_INTERPRET") == "1" else []
)  # needs a GPU, or Triton's interpreter


@pytest.fixture(scope="module")
def peers():
    return find_peers()


def eager(batch):
    return batch.gft_loss(-F.cross_entropy(F.linear(batch.hidden, batch.weight), batch.targets, reduction="none"))


def gradients(provider, batch):
    batch = batch.leaves()
    provider(batch).backward()
    return batch.hidden.grad.double(), batch.weight.grad.double()


@pytest.mark.parametrize("rows", [1024, 100])
@pytest.mark.parametrize("name", [name for name, peer in PEERS.items() if not peer.gpu] + INTERPRETED)
def test_gradient_is_that_of_fp64_logits(peers, name, rows):
    found, missing = peers
    if name not in found and missing[name] != "needs a CUDA device":
        pytest.skip(missing[name])
    batch = make_batch(TINY_CASES[1]).thinned(rows)
    exact = gradients(eager, replace(batch, hidden=batch.hidden.double(), weight=batch.weight.double()))
    for own, reference in zip(gradients(PEERS[name].load(), batch), exact, strict=True):
        assert torch.linalg.norm(own - reference) <= 1e-3 * torch.linalg.norm(reference)


@pytest.mark.parametrize("module", sorted({peer.module for peer in PEERS.values()}))
def test_missing_package_is_a_reason(monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    found, missing = find_peers()
    assert sorted([*found, *missing]) == sorted(PEERS)
    for name, peer in PEERS.items():
        if peer.module == module:
            assert missing[name] == f"{peer.package} is not installed"


def test_failing_import_is_a_reason(monkeypatch):
    def load():
        raise OSError("no such library")

    monkeypatch.setitem(PEERS, "trl", Peer("pytest", "pytest", load))
    found, missing = find_peers()
    assert missing["trl"] == "OSError: no such library"
    assert sorted([*found, *missing]) == sorted(PEERS)
