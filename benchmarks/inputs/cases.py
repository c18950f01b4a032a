"""What is measured: shapes of heads, and batches that are the same for every provider.

A batch is made from a seed, or recorded from a model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from .synthetic import peaked, random

TAU = 0.7
ACTIVATIONS = Path(__file__).parents[2] / "models" / "smollm2-activations.pt"
Inputs = Literal["random", "peaked", "real"]

HEADS = {  # name -> (D, V)
    "small": (512, 32768),
    "smollm2": (576, 49152),
    "qwen2.5-1.5b": (1536, 151936),
    "gemma": (2304, 256000),
    "llama-3.2-3b": (3072, 128256),
    "qwen2.5-7b": (3584, 152064),
    "llama-3.1-8b": (4096, 128256),
    "published": (4096, 131072),  # the shape of the figures that peers publish
}
BATCHES = {"all-active": (0.0, 0.0), "gft-batch": (0.30, 0.25), "tenth-active": (0.90, 0.0)}  # name -> (masked, flat)


@dataclass(frozen=True)
class Case:
    """N rows of a head [V, D].

    `masked` is the share of ignored targets, `flat` of groups without spread (advantage 0).
    """

    name: str
    N: int
    D: int
    V: int
    masked: float = 0.0
    flat: float = 0.0
    dtype: torch.dtype = torch.float32
    inputs: Inputs = "random"

    @property
    def label(self) -> str:
        return f"{self.name} N={self.N} {self.inputs}"


def case(head: str, batch: str, N: int, dtype: torch.dtype = torch.float32, inputs: Inputs = "random") -> Case:
    """The case of a head and a batch by name."""
    return Case(f"{head} {batch}", N, *HEADS[head], *BATCHES[batch], dtype, inputs)


BF16 = torch.bfloat16
TINY_CASES = tuple(Case(f"tiny {batch}", 1024, 64, 1000, *BATCHES[batch]) for batch in ("all-active", "gft-batch"))
MADE_UP: tuple[Inputs, ...] = ("random", "peaked")
INTERPRETER_CASES = (Case("interpreter gft-batch", 32, 16, 100, *BATCHES["gft-batch"], BF16),)
SETS: dict[str, tuple[Case, ...]] = {
    "cpu": (case("small", "all-active", 1024), case("small", "gft-batch", 1024)),
    "cpu-wide": (
        *(case("smollm2", batch, 1024, inputs=inputs) for inputs, batch in product(MADE_UP, BATCHES)),
        *(case("smollm2", batch, 4096, inputs="real") for batch in ("all-active", "gft-batch")),
    ),
    "cpu-scaling": (
        *(case("small", "gft-batch", N) for N in (256, 1024, 4096)),
        *(Case(f"V={V} gft-batch", 1024, 512, V, *BATCHES["gft-batch"]) for V in (8192, 131072)),
    ),
    "cuda": (  # the one the targets are about first: a time limit takes the last
        *(case("published", batch, 8192, BF16) for batch in BATCHES),
        case("published", "all-active", 8192, BF16, "peaked"),
        case("smollm2", "all-active", 4096, BF16, "real"),
        *(case(head, "gft-batch", 8192, BF16) for head in HEADS if head not in ("small", "published")),
    ),
    "cuda-scaling": (
        *(case("published", "gft-batch", N, BF16) for N in (1024, 4096, 16384, 32768, 65536)),
        *(Case(f"V={V} gft-batch", 8192, 4096, V, *BATCHES["gft-batch"], BF16) for V in (32768, 65536, 262144)),
    ),
    "tiny": TINY_CASES,
    "interpreter": INTERPRETER_CASES,
}
REAL = [case for case in SETS["cpu-wide"] if case.inputs == "real"]
SETS["cpu-docs"] = tuple(dict.fromkeys((*SETS["cpu"], *SETS["cpu-scaling"], *REAL)))  # all that README and docs show


@dataclass
class Batch:
    hidden: Tensor  # [N, D]
    weight: Tensor  # [V, D]
    targets: Tensor  # [N], -100 where masked
    advantages: Tensor  # [N]
    token_weights: Tensor  # [N] token-mean

    def gft_loss(self, logprobs: Tensor) -> Tensor:  # [N] -> scalar
        """The GFT loss on top of per-token log-probs; masked rows are 0 by their weight."""
        p = logprobs.detach().exp()
        return -(self.token_weights * self.advantages * torch.where(p < TAU, p, 1.0) * logprobs).sum()

    def leaves(self) -> Batch:
        """The same batch with hidden and weight as fresh leaves that want a gradient."""
        return replace(self, hidden=self.hidden.detach().requires_grad_(), weight=self.weight.detach().requires_grad_())

    def thinned(self, rows: int) -> Batch:
        """About `rows` evenly spaced rows, for the correctness gate.

        An fp64 oracle of all rows would not fit.
        """
        every = slice(None, None, max(len(self.targets) // rows, 1))
        return Batch(
            self.hidden[every], self.weight, self.targets[every], self.advantages[every], self.token_weights[every]
        )


def make_batch(case: Case, device: str = "cpu", seed: int = 0, activations: Path = ACTIVATIONS) -> Batch:
    """Groups of 8 sequences of 32 tokens; the first tokens of a sequence are its masked prompt.

    Raises:
        FileNotFoundError: real inputs that nobody recorded yet.
        ValueError: recorded ones of another shape.
    """
    generator = torch.Generator(device).manual_seed(seed)
    if case.inputs == "real":
        hidden, weight, targets = recorded(case, device, activations)
    else:
        hidden, weight, targets = (peaked if case.inputs == "peaked" else random)(case.N, case.D, case.V, generator)
    sequence = torch.arange(case.N, device=device) // 32
    position = torch.arange(case.N, device=device) % 32
    targets[position < round(32 * case.masked)] = -100
    advantages = torch.randn(int(sequence.max()) + 1, generator=generator, device=device)[sequence]
    groups = sequence // 8
    advantages[groups < round(case.flat * (int(groups.max()) + 1))] = 0
    valid = targets != -100
    return Batch(hidden.to(case.dtype), weight.to(case.dtype), targets, advantages, valid / valid.sum())


def recorded(case: Case, device: str, path: Path = ACTIVATIONS) -> tuple[Tensor, Tensor, Tensor]:
    """(hidden [N, D], weight [V, D], targets [N]) of response tokens of a real model."""
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing: `make smollm2`, then `python -m benchmarks.inputs.activations` record it."
        )
    found = torch.load(path, weights_only=True, map_location=device)
    hidden, weight, targets = (found[name] for name in ("hidden", "weight", "targets"))
    if tuple(weight.shape) != (case.V, case.D) or len(hidden) < case.N:
        raise ValueError(
            f"{path} holds {len(hidden)} rows of a head {tuple(weight.shape)}; {case} asks for other ones."
        )
    return hidden[: case.N].float(), weight.float(), targets[: case.N].clone()
