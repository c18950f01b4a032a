"""The model and the batch of the training step, the same for every head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from gft.data.files import Example
from gft.groups import Member
from gft.model.policy import Policy, load_policy
from gft.settings.config import TrainConfig
from gft.settings.parts import GroupConfig, OptimConfig, SamplingConfig
from gft_kernels.integrations.hf import fuse_loss

PROMPT, LENGTHS = 32, (64, 96, 128, 160)  # tokens of a group's prompt, and of its responses


@dataclass(frozen=True)
class Task:
    """A model by its folder, or a small random one, and a batch: the same for every head."""

    model: Path | None = None
    device: str = "cpu"
    tiny: bool = False
    groups: int = 4
    micro_batch: int = 8  # sequences

    def name(self) -> str:
        return self.model.name if self.model else "random-tiny" if self.tiny else "random-256x4-v32768"

    def lengths(self) -> tuple[int, ...]:
        return tuple(n // 16 for n in LENGTHS) if self.tiny else LENGTHS

    def config(self) -> TrainConfig:
        sampling = SamplingConfig(max_given_tokens=max(LENGTHS))
        return TrainConfig(
            objective="gft",
            prompts_per_step=self.groups,
            group=GroupConfig(own=0),
            sampling=sampling,
            optim=OptimConfig(micro_batch=self.micro_batch),
        )

    def policy(self) -> Policy:
        if self.model:
            return load_policy(self.model, device=self.device)
        hidden, layers, vocabulary = (32, 2, 512) if self.tiny else (256, 4, 32768)
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=hidden,
            intermediate_size=hidden * 8 // 3,
            num_hidden_layers=layers,
            num_attention_heads=4,
            tie_word_embeddings=True,
        )
        model: Any = LlamaForCausalLM(config)
        model.to(self.device)
        tokenizer: Any = SimpleNamespace(pad_token_id=0)  # all that a step on given responses asks of it
        return Policy(fuse_loss(model), tokenizer, torch.bfloat16 if self.device == "cuda" else torch.float32)


def members(vocabulary: int, groups: int, lengths: Sequence[int]) -> list[Member]:
    """Groups of given responses of random tokens; every fourth group has equal rewards."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda count: torch.randint(vocabulary, (count,), generator=generator).tolist()  # noqa: E731
    found = []
    for group in range(groups):
        prompt = draw(PROMPT)
        for i, length in enumerate(lengths):
            reward = 1.0 if group % 4 == 0 else float(i == 0 or i == group)
            found.append(
                Member(group, "teacher" if i else "expert", prompt, draw(length), "", False, Example("", ""), reward)
            )
    return found
