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
    advantage: Literal["group", "one"] = "group"
    """one: every response counts alike, and no reward is asked for. It is the paper's ablation "w/o
    GAL"."""
    rectify: Literal["all", "given"] = "all"
    """The responses that C(p) acts on (gft). given: those of experts and teachers, and tau is 0 for
    own ones, which were sampled with probability p already. all is the paper's."""


@dataclass(frozen=True)
class SamplingConfig:
    """Rollouts and lengths."""

    max_prompt_tokens: int = 1024
    """Longer prompts are left out, and counted."""
    max_given_tokens: int = 2048
    """Tokens of an expert or teacher response, with the end token."""
    long_given: Literal["drop", "cut"] = "drop"
    """A longer one is dropped from its group, or cut: scored by its whole text, and trained on up to
    the limit, without an end token."""
    max_new_tokens: int = 512
    """The policy's own responses are cut here. The built-in rewards then give 0."""
    temperature: float = 1.0
    batch: int = 128
    """Sequences generated at once."""
    sampler: Literal["generate", "continuous", "vllm"] = "generate"
    """What draws the policy's own responses: transformers' generate, its continuous batching, or vLLM
    (docs/sampling.md). Evaluation samples by generate."""
    vllm_memory: float = 0.3
    """The share of the GPU's memory that vLLM may take while it samples (vllm)."""
    truncated: Literal["train", "mask"] = "train"
    """mask: own responses that were cut count in their group, and are not trained on."""


@dataclass(frozen=True)
class ReuseConfig:
    """How often a batch of rollouts is trained on, and what holds the policy near to another."""

    rollout_steps: int = 1
    """Optimiser steps that a batch of rollouts serves: the groups of so many steps are sampled at
    once. The paper has 4."""
    passes: int = 1
    """Times that every batch of rollouts is trained on."""
    clip_low: float | None = None
    """How far below 1 the ratio to the policy that sampled counts. None is 0.2 for grpo, 1.0 for
    cispo and 3e-4 for gspo."""
    clip_high: float | None = None
    """How far above 1. None is 0.2 for grpo, 4.0 for cispo and 4e-4 for gspo."""
    kl: float | None = None
    """Weight of the penalty on the KL to the reference policy (k3 at every token). 0 measures it and
    changes nothing; None keeps no reference."""
    importance_cap: float | None = None
    """Weight own tokens by the trainer's probability over that of the sampler, at most by this. None
    weights nothing."""

    @property
    def updates(self) -> int:
        """Updates of a batch of rollouts."""
        return self.rollout_steps * self.passes


@dataclass(frozen=True)
class RewardLimits:
    """What rewards that run in worker processes may take: math, and your own functions."""

    reward_workers: int | None = None
    """Worker processes of a reward. None is one for every core that this process may use."""
    reward_seconds: float = 5.0
    """Wall time of one call. A longer one is ended, and counted as a failure."""
    reward_memory: int = 1024
    """MiB that one call may allocate. More of it is a failure."""


@dataclass(frozen=True)
class OptimConfig:
    """AdamW, and what is done to its gradients."""

    lr: float = 1e-6
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """The learning rate after the warm-up: constant, or falling to --min-lr at the end of the run."""
    warmup: int = 0
    """Steps of linear warm-up."""
    min_lr: float = 0.0
    """The learning rate that a schedule ends at."""
    weight_decay: float = 0.01
    """Decay of matrices. Norms and biases have none."""
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    micro_batch: int = 8
    """Sequences in one forward and backward pass. It changes memory, not the result."""
    packed: bool = False
    """Put the sequences of a micro-batch into one row without padding. The result is the same."""
    bad_steps: int = 5
    """Stop after this many steps in a row whose gradient is not finite."""


@dataclass(frozen=True)
class ModelConfig:
    """How the model is trained: its layers in gradient passes."""

    dropout: bool = False
    """Train with the dropout that the model's config has. The loss is then not that of the network
    that sampled."""
    checkpointing: bool = False
    """Gradient checkpointing: layers are computed again in the backward pass. Less memory, a third
    more time."""
    liger: bool = False
    """Kernels of Liger in the layers (RMSNorm, SwiGLU, rotary positions). A GPU only."""
    lora: int | None = None
    """Train factors of this rank beside the weights, which stay as they are. None trains the weights
    themselves."""
    lora_alpha: int | None = None
    """The product of the factors is multiplied by this / rank. None is twice the rank."""
    lora_targets: str = "all-linear"
    """Layers that get factors, by the ends of their names: q_proj,v_proj. all-linear: every linear
    layer but the head."""


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
