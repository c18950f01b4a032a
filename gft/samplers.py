"""Which sampler draws the policy's own responses. All are chosen here.

A sampler keeps three promises (`Sampler`). What it cannot keep is refused, by `check_sampler`
before data and model are read, or by the sampler itself.
"""

from __future__ import annotations

from functools import partial
from typing import Protocol

import torch
import torch.distributed as dist
import transformers

from .options import OptionError
from .parts import SamplingConfig
from .policy import Policy
from .rollout import Rollout, sample
from .rollout_continuous import sample_continuous
from .rollout_vllm import is_installed, sample_vllm


class Sampler(Protocol):
    """One response to each prompt.

    1. Samples are of the current weights at the given temperature, without top-k or top-p, and
       depend on torch's random state alone.
    2. A response is the token ids that were drawn, each with its log-prob under the distribution
       that it was drawn from. It is never text that is tokenised again.
    3. It has its end token, or is marked truncated.
    """

    def __call__(
        self, policy: Policy, prompts: list[list[int]], *, max_new_tokens: int, temperature: float, batch: int
    ) -> list[Rollout]: ...


SAMPLERS: dict[str, Sampler] = {"generate": sample, "continuous": sample_continuous}


def draw(policy: Policy, prompts: list[list[int]], sampling: SamplingConfig) -> list[Rollout]:
    """One response to each prompt by the sampler of the configuration; repeat a prompt for more."""
    sampler: Sampler = SAMPLERS.get(sampling.sampler) or partial(
        sample_vllm, longest=sampling.max_prompt_tokens + sampling.max_new_tokens, memory=sampling.vllm_memory
    )
    return sampler(
        policy,
        prompts,
        max_new_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
        batch=sampling.batch,
    )


def check_sampler(name: str, device: str | None, dtype: str, *, lora: bool = False) -> None:
    """Refuse a sampler that cannot run here, or not exactly.

    Raises:
        OptionError: it cannot.
    """
    on_gpu = (device or ("cuda" if torch.cuda.is_available() else "cpu")).startswith("cuda")
    why = None
    if name != "generate" and dist.is_initialized() and dist.get_world_size() > 1:
        why = "runs in one process, and this run has several"
    elif name == "continuous" and not hasattr(transformers, "ContinuousBatchingConfig"):
        why = f"needs a newer transformers: {transformers.__version__} has no ContinuousBatchingConfig"
    elif name == "continuous" and (dtype == "bfloat16" or (dtype == "auto" and on_gpu)):
        why = "samples in float32, the dtype of the parameters: give --dtype float32"
    elif name == "vllm" and not on_gpu:
        why = "needs --model and a GPU"
    elif name == "vllm" and lora:
        why = "takes weights by the names of a checkpoint, which those of --lora are not"
    elif name == "vllm" and not is_installed():
        why = "needs the package vllm, which is not installed"
    if why is not None:
        raise OptionError(f"--sampler {name} {why}. Without the option, transformers' generate samples.")
