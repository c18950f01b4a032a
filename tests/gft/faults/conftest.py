"""The run to which nothing happens, once a process."""

from __future__ import annotations

import signal

import pytest
import torch

from gft import cli
from gft.stop import STOPPING

from .tiny import command, make_inputs, outcome


@pytest.fixture(autouse=True)
def forkable():
    if torch.cuda.is_available():
        pytest.skip("a process that has used CUDA cannot be forked")


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("faults")
    make_inputs(path)
    return path


@pytest.fixture(scope="session")
def whole(folder):
    """Numbers and weights of the run to which nothing happens.

    It is made in this process, which so has imported all that the forks need.
    """
    before = {number: signal.getsignal(number) for number in STOPPING}
    cli.main(command(folder, folder / "whole"))
    for number, handler in before.items():
        signal.signal(number, handler)
    return outcome(folder / "whole")
