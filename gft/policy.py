"""A policy: a causal language model taken apart into backbone and head, with its tokenizer."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from gft_kernels import Head
from gft_kernels.integrations.hf import split_head


@dataclass
class Policy:
    """What the loop needs of a model; logits are formed by `generate` only, never in training.

    Parameters stay in fp32: a learning rate of 1e-6 moves almost no bf16 weight. `compute` is what
    matrix products run in.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    backbone: torch.nn.Module
    weight: Tensor  # [V, D]
    head: Head
    compute: torch.dtype = torch.float32

    @property
    def device(self) -> torch.device:
        return self.weight.device

    @property
    def end_tokens(self) -> set[int]:
        """Tokens that end a response."""
        configured = self.model.generation_config.eos_token_id
        listed = configured if isinstance(configured, list) else [configured]
        return {t for t in (*listed, self.tokenizer.eos_token_id) if t is not None}

    @cached_property
    def end_token(self) -> int:
        """The token a finished response ends with: what the chat template puts after the
        assistant's turn, else the tokenizer's.
        """
        if self.tokenizer.chat_template is not None:
            turns = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})
            asked, answered = (
                self.tokenizer.apply_chat_template(list(some), tokenize=False, add_generation_prompt=prompt)
                for some, prompt in ((turns[:1], True), (turns, False))
            )
            after = self.tokenizer(answered.removeprefix(asked), add_special_tokens=False).input_ids
            return next((token for token in after if token in self.end_tokens), self.tokenizer.eos_token_id)
        return self.tokenizer.eos_token_id

    def precision(self) -> torch.autocast:
        """The context that forward passes of the backbone run in."""
        return torch.autocast(self.device.type, self.compute, enabled=self.compute != torch.float32)

    def hidden(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """[B, T, D] last hidden states of right-padded tokens [B, T]."""
        with self.precision():
            return self.backbone(input_ids=tokens, attention_mask=mask, use_cache=False).last_hidden_state

    def head_operands(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """hidden [N, D] and the head's weight in the dtype the backbone computes in: fp32 operands
        would leave the tensor cores idle.
        """
        return hidden.to(self.compute), self.weight.to(self.compute)

    def encode_prompt(self, prompt: str | tuple[dict, ...]) -> list[int]:
        """Chat messages go through the chat template, up to the assistant's turn; text is taken as
        it is.
        """
        if isinstance(prompt, str):
            return self.tokenizer(prompt).input_ids
        if self.tokenizer.chat_template is None:
            raise ValueError(
                f"the data has chat messages but the tokenizer of {self.model.name_or_path or 'this model'} has no "
                "chat template."
            )
        text = self.tokenizer.apply_chat_template(list(prompt), tokenize=False, add_generation_prompt=True)
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def encode_response(self, text: str) -> list[int]:
        """Tokens of a finished response, with its end token."""
        return [*self.tokenizer(text, add_special_tokens=False).input_ids, self.end_token]

    def decode(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True)


def make_policy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    temperature: float = 1.0,
    compute: torch.dtype = torch.float32,
) -> Policy:
    """Check that tokenizer and head fit, and split the head off.

    Raises:
        ValueError: no end token, or more tokens than head rows.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no eos_token: a response could not end. Set one before training.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # padding is masked by length, never by its value
    parts = split_head(model, temperature=temperature)
    if len(tokenizer) > parts.weight.shape[0]:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens but the head {parts.weight.shape[0]} rows: they do not "
            "belong together."
        )
    return Policy(model, tokenizer, *parts, compute)


def load_policy(path: Path, *, device: str | None = None, dtype: str = "auto", temperature: float = 1.0) -> Policy:
    """Load a local transformers folder with fp32 parameters; trust_remote_code is off.

    dtype is what the backbone computes in: "auto" is bfloat16 on a GPU and float32 elsewhere.

    Raises:
        FileNotFoundError: no model there.
    """
    if not (Path(path) / "config.json").exists():
        raise FileNotFoundError(
            f"{path} holds no transformers model (no config.json). `make smollm2` makes one at models/smollm2-135m."
        )
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    chosen = (
        (torch.bfloat16 if device.startswith("cuda") else torch.float32) if dtype == "auto" else getattr(torch, dtype)
    )
    flash = (
        device.startswith("cuda") and chosen == torch.bfloat16 and importlib.util.find_spec("flash_attn") is not None
    )
    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="sdpa", local_files_only=True
    )
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    policy = make_policy(
        model.to(device).eval(), tokenizer, temperature, chosen
    )  # checked in fp32, which flash-attn does not take
    if flash:
        model.set_attn_implementation("flash_attention_2")
    return policy
