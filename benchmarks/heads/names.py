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
SHORT = {  # at a line or a bar of a figure, where there is room for a dozen letters
    "eager": "eager",
    "compile": "torch.compile",
    "authors": "authors' code",
    "torch-linear-ce": "torch linear CE",
    "trl": "TRL",
    "liger-scaled-ce": "Liger scaled CE",
    "liger-flce": "Liger FLCE",
    "liger-grpo": "Liger GRPO",
    "cce": "CCE",
    "cce-exact": "CCE exact",
    "verl-torch": "verl torch",
    "verl-triton": "verl Triton",
    "quack": "QuACK",
    "gft-chunked": "ours",
    "gft-sparse-chunked": "ours, sparse",
    "gft-logprob-chunked": "ours, log-probs",
    "gft-triton": "ours",
    "gft-sparse-triton": "ours, sparse",
    "gft-logprob-triton": "ours, log-probs",
    "bare-gemms": "bare GEMMs",
}


def is_own(provider: str) -> bool:
    """Whether a provider is one of this package's heads."""
    return provider.startswith("gft")
