"""What every test runs under: uninitialised float memory reads NaN, one CPU thread, the same seed."""

from __future__ import annotations

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = (
        "1"  # before gft_kernels.triton is imported: kernels run on the CPU, one program at a time
    )

ALLOCATORS = ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty"))
PLAIN = [getattr(owner, name) for owner, name in ALLOCATORS]


def _poisoned(allocate):
    """`allocate` with its float memory filled with NaN, so that a row nobody writes shows in any
    comparison.
    """

    def wrapper(*args, **kwargs):
        tensor = allocate(*args, **kwargs)
        if tensor.is_floating_point() and tensor.layout == torch.strided:
            with torch.no_grad():
                tensor.fill_(torch.nan)
        return tensor

    return wrapper


@pytest.fixture(autouse=True, scope="session")
def poisoned_memory():
    with pytest.MonkeyPatch.context() as patch:
        for (owner, name), allocate in zip(ALLOCATORS, PLAIN, strict=True):
            patch.setattr(owner, name, _poisoned(allocate))
        yield


@pytest.fixture
def plain_memory(monkeypatch):
    """Undo the poison for one test: torch.compile cannot look into a wrapped allocator."""
    for (owner, name), allocate in zip(ALLOCATORS, PLAIN, strict=True):
        monkeypatch.setattr(owner, name, allocate)


@pytest.fixture(autouse=True, scope="session")
def cpu_threads():
    """One thread: the matrices are small, and threads that wait for each other are slow on a busy
    machine.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
