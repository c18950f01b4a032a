"""The parts of a configuration: options that belong together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class GroupConfig:
    """The composition of a group, and how its rewards become advantages.

    A number of responses that is None follows the objective: gft has 1 expert, 3 teachers and 4
    own, sft and dft have 1 expert, the others have 8 own.
    """

    experts: int | None = None
    teachers: int | None = None
    own: int | None = None
    """Responses sampled from the current policy. "self" responses in the data are not used."""
    scale: Literal["group", "batch", "none"] = "group"
    """The std that a reward less its group's mean is divided by: of the group, the batch, or none."""
    singleton: Literal["reward", "zero"] = "reward"
    """The advantage of a group of one."""
    count_flat: bool = True
    """Count the tokens of groups whose advantages are all 0 in the denominator of the loss."""


@dataclass(frozen=True)
class SamplingConfig:
    """Rollouts and lengths."""

    max_prompt_tokens: int = 1024
    """Longer prompts are left out, and counted."""
    max_given_tokens: int = 2048
    """Longer expert and teacher responses are cut. They then have no end token, and reward 0."""
    max_new_tokens: int = 512
    """The policy's own responses are cut here. The built-in rewards then give 0."""
    temperature: float = 1.0
    batch: int = 128
    """Sequences generated at once."""


@dataclass(frozen=True)
class OptimConfig:
    """AdamW, and what is done to its gradients."""

    lr: float = 1e-6
    weight_decay: float = 0.01
    warmup: int = 0
    """Steps of linear warm-up, then constant."""
    max_grad_norm: float = 1.0
    micro_batch: int = 8
    """Sequences in one forward and backward pass. It changes memory, not the result."""
    bad_steps: int = 5
    """Stop after this many steps in a row whose gradient is not finite."""


@dataclass(frozen=True)
class EvalConfig:
    """Held-out accuracy during the run."""

    eval_every: int = 0
    """Evaluate every this many steps (0: only before and after)."""
    eval_prompts: int | None = None
    """Held-out prompts; 0 evaluates nothing (`gft eval` does it later). None is 64 with
    --eval-data, else 0."""
    eval_samples: int = 16
    """Samples a prompt at temperature 1. Their mean is the paper's metric. Greedy is reported too."""
    eval_answers: int = 16
    """Held-out prompts whose answers are kept as texts, in samples/ of --out: the greedy one and up
    to four samples. Of the other prompts their rewards are kept; with 0 nothing is."""
