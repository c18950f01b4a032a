"""python -m tests.helpers.flow: the files that one call of the package passes through, in order.

A reader who follows a call opens these files, and changes between them this often.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import gft_kernels
from gft_kernels import GroupRewards, gft, linear_policy_loss

ROOT = Path(gft_kernels.__file__).parent


def files_of(call: Callable[[], object]) -> list[str]:
    """The file of every function of the package that `call` enters, repeats in a row left out."""
    entered: list[str] = []

    def profile(frame: FrameType, event: str, _: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(ROOT):
            name = str(path.relative_to(ROOT))
            if not entered or entered[-1] != name:
                entered.append(name)

    call()  # caches are filled, and modules imported
    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
    return entered


def fused_loss(backend: str = "chunked", grouped: bool = False) -> Callable[[], object]:
    """One chunk of a GFT loss, gradients formed in its forward."""
    hidden, weight = torch.randn(6, 8, requires_grad=True), torch.randn(20, 8, requires_grad=True)
    targets, given = torch.randint(0, 20, (6,)), torch.randn(6)
    advantages = GroupRewards(given, torch.arange(6) // 3, torch.arange(6)) if grouped else given
    objective = gft(0.7)
    return lambda: linear_policy_loss(hidden, weight, targets, advantages, objective=objective, backend=backend)


def main() -> None:
    for backend, grouped in (("chunked", False), ("chunked", True), ("eager", False)):
        entered = files_of(fused_loss(backend, grouped))
        print(f"{backend}{', group rewards' if grouped else ''}: {len(set(entered))} files, {len(entered) - 1} changes")
        print("   " + " > ".join(name.removesuffix(".py") for name in entered))


if __name__ == "__main__":
    main()
