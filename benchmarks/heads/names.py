"""What tables and figures call the providers."""

from __future__ import annotations

NAMES = {
    "eager": "eager logits",
    "compile": "`torch.compile` of eager",
    "authors": "the method's published code (second softmax)",
    "torch-linear-ce": "torch `F.linear_cross_entropy`, chunked",
    "trl": "TRL, chunked log-probs",
    "liger-scaled-ce": "Liger, scaled cross entropy",
    "liger-flce": "Liger, fused linear cross entropy",
    "liger-grpo": "Liger, chunked GRPO head",
    "liger": "Liger, scaled cross entropy",
    "cce": "Cut Cross Entropy",
    "cce-exact": "Cut Cross Entropy, exact",
    "verl-torch": "verl, torch head",
    "verl-triton": "verl, Triton head",
    "quack": "QuACK, per-token losses",
    "gft-chunked": "**gft-kernels** fused loss, `chunked`",
    "gft-sparse-chunked": "**gft-kernels** fused loss, column-sparse, `chunked`",
    "gft-sparse-triton": "**gft-kernels** fused loss, column-sparse, `triton`",
    "gft-logprob-chunked": "**gft-kernels** log-probs, `chunked`",
    "gft-triton": "**gft-kernels** fused loss, `triton`",
    "gft-logprob-triton": "**gft-kernels** log-probs, `triton`",
    "gft-kernels": "**gft-kernels**",
    "bare-gemms": "the three bare GEMMs: no loss, no gradient",
}


def is_own(provider: str) -> bool:
    return provider.startswith("gft")


def plain(provider: str) -> str:
    """The name without Markdown."""
    return NAMES[provider].replace("*", "").replace("`", "")
