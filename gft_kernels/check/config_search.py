"""--config-search: which launch configuration is the fastest on this device."""

from __future__ import annotations

import statistics

import torch

from ..head import Backend
from ..ops.linear_policy_loss import linear_policy_loss
from .costs import fitting, milliseconds

CONFIGS = (
    "128x256x64x8x3",
    "128x256x64x8x4",
    "128x256x32x8x4",
    "128x256x128x8x2",
    "256x128x64x8x3",
    "256x128x64x8x4",
    "128x128x64x8x3",
    "128x128x64x4x3",
    "128x128x64x4x4",
    "128x128x128x8x3",
    "64x256x64x4x4",
    "64x256x64x8x3",
    "64x128x64x4x4",
    "128x64x64x4x4",
)


def config_search(rows: int, size: int, vocabulary: int, dtype: torch.dtype) -> int:
    """Time the GFT loss, forward and backward, under every configuration of CONFIGS; best first."""
    from ..engines.triton.configs import parse_config, use_config  # Triton only where it runs

    rows, size, vocabulary = fitting(rows, size, vocabulary, 4, "cuda")
    print(f"\n{rows}x{size}x{vocabulary} {dtype}, forward and backward (rows x vocabulary x depth x warps x stages)")
    g = torch.Generator("cuda").manual_seed(0)
    hidden = torch.randn(rows, size, generator=g, device="cuda", dtype=dtype).requires_grad_()
    weight = (torch.randn(vocabulary, size, generator=g, device="cuda", dtype=dtype) * size**-0.5).requires_grad_()
    targets = torch.randint(vocabulary, (rows,), generator=g, device="cuda")
    advantages = torch.randn(rows, generator=g, device="cuda")

    def run() -> None:
        hidden.grad = weight.grad = None
        linear_policy_loss(
            hidden, weight, targets, advantages, backend=Backend("triton", validate=False)
        ).loss.backward()

    found = []
    for text in CONFIGS:
        with use_config(parse_config(text)):
            try:
                run()  # compiles
                found.append((statistics.median(milliseconds(run, "cuda") for _ in range(7)), text))
                print(f"  {text:<18} {found[-1][0]:9.2f} ms", flush=True)
            except Exception as error:
                print(f"  {text:<18} left out: {type(error).__name__}: {str(error)[:100]!r}", flush=True)
    if not found:
        print("no configuration ran.")
        return 1
    print("\nbest first:")
    for ms, text in sorted(found):
        print(f"  {text:<18} {ms:9.2f} ms")
    print(f"\nexport GFT_KERNELS_CONFIG={min(found)[1]}")
    return 0
