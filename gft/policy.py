"""A policy: a causal language model that computes the loss in its forward, with its tokenizer."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gft_kernels import PolicyLoss
from gft_kernels.integrations.hf import PolicyBatch, fuse_loss

from .encoding import Encoding, Prompt
from .layers import checkpoint_layers, refuse_unsuitable, set_mode
from .liger import use_liger
from .lora import add_lora, load_adapter
from .model_folder import read_model_folder, read_without_weights
from .parts import ModelConfig

DTYPES = {name: getattr(torch, name) for name in ("bfloat16", "float32")}


@dataclass
class Policy:
    """What the loop needs of a model. Logits are formed by `generate` only, never in training.

    Parameters stay in fp32, because an update of 1e-6 moves almost no bf16 weight. `compute` is the
    dtype of matrix products.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    compute: torch.dtype = torch.float32
    wrapped: DistributedDataParallel | None = None  # what training calls in place of the model, where it is set
    dropout: bool = False  # in gradient passes
    adapter: Any = None  # PEFT's view of the model, if LoRA is trained

    @property
    def device(self) -> torch.device:
        return self.model.device

    @cached_property
    def encoding(self) -> Encoding:
        """How the tokenizer encodes prompts and responses."""
        configured = self.model.generation_config.eos_token_id
        listed = configured if isinstance(configured, list) else [configured]
        ends = [token for token in listed if token is not None]
        return Encoding(self.tokenizer, ends, self.model.name_or_path)

    @property
    def end_tokens(self) -> set[int]:
        """Tokens that end a response."""
        return self.encoding.end_tokens

    @property
    def end_token(self) -> int:
        """The token at the end of given responses: to a chat, if there is a template."""
        return self.encoding.end_token()

    def encode_prompt(self, prompt: Prompt) -> list[int]:
        """Tokens of a text or a chat: see `Encoding.prompt`."""
        return self.encoding.prompt(prompt)

    def encode_response(self, text: str, prompt: Prompt | None = None) -> list[int]:
        """Tokens of a given response, to that prompt or to any: see `Encoding.response`."""
        return self.encoding.response(text, prompt)

    def response_text(self, text: str) -> str:
        """The text of a given response, without end tokens that are spelled out behind it."""
        return self.encoding.response_text(text)

    def decode(self, tokens: list[int]) -> str:
        """The text of a sample, without its end token."""
        return self.encoding.decode(tokens)

    def precision(self) -> torch.autocast:
        """The context that forward passes run in. In fp32 tensor cores would be idle."""
        return torch.autocast(self.device.type, self.compute, enabled=self.compute != torch.float32)

    def learn(self) -> None:
        """Prepare gradient passes: see `set_mode`. Sampling leaves another mode behind."""
        set_mode(self.model, self.dropout)

    def loss(self, inputs: dict[str, Tensor], batch: PolicyBatch) -> PolicyLoss:
        """The loss of the inputs' tokens [B, T], which the model computes in its own forward."""
        with self.precision():
            model = self.wrapped if self.wrapped is not None and torch.is_grad_enabled() else self.model
            return model(**inputs, use_cache=False, policy_batch=batch)


def make_policy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    temperature: float = 1.0,
    compute: torch.dtype = torch.float32,
) -> Policy:
    """Fuse the loss into the model (`fuse_loss`), and check that it fits the tokenizer.

    `temperature` is the one that responses are sampled at. The head divides the logits by it, so
    that its log-probs are those of the distribution that was sampled from.

    Raises:
        TypeError: a model that `fuse_loss` refuses, or no tokenizer.
        ValueError: no end token, or tokens without a head row.
    """
    _prepare_tokenizer(tokenizer)
    fuse_loss(model, temperature=temperature)
    _check_vocabulary(tokenizer, model)
    return Policy(model, tokenizer, compute)


def _prepare_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise TypeError(f"tokenizer is {tokenizer!r:.60}: give a loaded one, AutoTokenizer.from_pretrained(...).")
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no eos_token: a response could not end. Set one before training.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # padding is masked by length, never by its value


def configure(policy: Policy, config: ModelConfig, *, seed: int = 0, adapter: Path | None = None) -> Policy:
    """Train the policy as the configuration says; returns it.

    `seed` is that of LoRA's factors, and `adapter` a folder to take them from.

    Raises:
        ValueError: an option that does not suit the model.
        ImportError: a package that an option needs is missing.
    """
    refuse_unsuitable(policy.model, config.dropout)
    policy.dropout = config.dropout
    if config.liger:
        use_liger(policy.model)
    if config.checkpointing:
        checkpoint_layers(policy.model, config.dropout)
    if config.lora is not None:
        policy.adapter = add_lora(policy.model, config, seed)
        if adapter is not None:
            load_adapter(policy.adapter, adapter)
    return policy


def _check_vocabulary(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    """Every token needs a row in the head and in the embedding. A vocabulary may have gaps."""
    largest = max(tokenizer.get_vocab().values(), default=-1)
    for name, layer in (("head", model.get_output_embeddings()), ("embedding", model.get_input_embeddings())):
        rows = len(cast(Tensor, layer.weight))
        if len(tokenizer) > rows or largest >= rows:
            what = f"{len(tokenizer)} tokens" if len(tokenizer) > rows else f"the token id {largest}"
            raise ValueError(f"the tokenizer has {what} but the {name} {rows} rows: they do not belong together.")


def load_policy(path: Path, *, device: str | None = None, dtype: str = "auto", temperature: float = 1.0) -> Policy:
    """Load a local transformers folder with fp32 parameters.

    `dtype` is what the backbone computes in: "auto" is bfloat16 on a GPU and float32 elsewhere.
    Code that comes with a model is not run, and nobody is asked whether to.

    Raises:
        FileNotFoundError: no model there.
        ValueError: a folder that is not a whole causal language model with its tokenizer, or a
            device or dtype that cannot be used here.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    _check_device(device)
    automatic = torch.bfloat16 if device.startswith("cuda") else torch.float32
    chosen = {"auto": automatic, **DTYPES}.get(dtype)
    if chosen is None:
        raise ValueError(f"dtype {dtype!r} is not one of auto, {', '.join(DTYPES)}.")
    flash = (
        device.startswith("cuda") and chosen == torch.bfloat16 and importlib.util.find_spec("flash_attn") is not None
    )
    model, tokenizer = read_model_folder(Path(path))
    model.to(device)  # type: ignore[arg-type]  # the annotation of transformers' own .to is at fault
    try:
        policy = make_policy(model, tokenizer, temperature, chosen)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    if flash:  # only now: make_policy checks the head in fp32, which flash-attn does not take
        model.set_attn_implementation("flash_attention_2")
    return policy


def load_encoder(path: Path) -> Policy:
    """The policy of a folder without its weights: it encodes and decodes, and nothing else.

    Raises:
        FileNotFoundError: no model there.
        ValueError: a folder that `load_policy` would refuse too, whatever its weights are.
    """
    model, tokenizer = read_without_weights(Path(path))
    try:
        _prepare_tokenizer(tokenizer)
        _check_vocabulary(tokenizer, model)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    return Policy(model, tokenizer)


def _check_device(device: str) -> None:
    if device.startswith("meta"):
        raise ValueError("device 'meta' holds no numbers: give cpu, cuda, ...")
    try:
        torch.empty(0, device=device)
    except Exception as error:
        raise ValueError(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}") from error
