"""What every test runs under.

Uninitialised float memory reads NaN, there is one CPU thread, the seed is the same, and Triton runs
in its interpreter where there is no GPU.
"""

from __future__ import annotations

import os

# Before torch and NumPy are imported, here and in what tests start: the matrices are small, and
# threads that wait for each other are slow on a busy machine.
os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported: kernels run on the CPU, one program at a time

WORKERS = 8  # at most: each holds torch and transformers in memory, and imports them first

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
def repaired_interpreter():
    """The engine repairs the interpreter before it launches; tests launch without an engine."""
    if not torch.cuda.is_available():
        from gft_kernels.engines.triton import interpreter

        interpreter.repair()


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.hookimpl(optionalhook=True)  # pytest-xdist may be missing, or switched off
def pytest_xdist_auto_num_workers() -> int:
    """Workers that `-n auto` starts; one where they would share a GPU, whose memory is measured."""
    return 1 if torch.cuda.is_available() else min(os.cpu_count() or 1, WORKERS)


@pytest.fixture
def fresh_accelerate() -> None:
    """accelerate as in a new process: its state is shared, and another test may have set it."""
    state = pytest.importorskip("accelerate.state")
    state.AcceleratorState._reset_state(reset_partial_state=True)
