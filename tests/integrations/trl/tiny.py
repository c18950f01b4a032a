"""A tiny model, tokenizer, data set and batches for TRL's trainers, without network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig, PreTrainedTokenizerFast
from trl import GRPOConfig

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
LETTERS = "abcdefghijklmnopqrst"
KINDS = {
    "llama": LlamaConfig,
    "mixtral": lambda **sizes: MixtralConfig(
        **sizes, num_local_experts=4, num_experts_per_tok=2, router_aux_loss_coef=0.02, output_router_logits=True
    ),
}


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a letter."""
    words = ["<pad>", "<eos>", "<bos>", "<unk>", *LETTERS]
    rule = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    rule.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=rule, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>"
    )


def folder_with_model(folder: Path, kind: str = "llama") -> str:
    """A model saved where TRL may load a reference from."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(KINDS[kind](vocab_size=4 + len(LETTERS), **SIZES))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))  # log-probs far from those of an untrained head
    model.save_pretrained(folder)
    return str(folder)


def prompts(count: int = 8) -> Dataset:
    texts = [LETTERS[i : i + 3] for i in range(count)]
    return Dataset.from_dict({"prompt": texts, "given": [[text, text[::-1]] for text in texts]})


def config(folder: Path, **options: Any) -> GRPOConfig:
    defaults: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "per_device_train_batch_size": 4,
        "num_generations": 4,
        "max_completion_length": 6,
        "logging_steps": 1,
    }
    return GRPOConfig(**{**defaults, **options})


def length_reward(completions: list[str], **_: Any) -> list[float]:
    return [float(len(text)) for text in completions]


def batch(*, old: bool = False, ref: bool = False, seed: int = 0) -> dict[str, Tensor]:
    """A micro-batch as GRPOTrainer hands it to its loss: 4 completions of 6, of a step of 3."""
    g = torch.Generator().manual_seed(seed)
    mask = torch.arange(6) < torch.tensor([6, 3, 5, 1])[:, None]
    prompt_mask = torch.arange(5) >= torch.tensor([0, 2, 1, 0])[:, None]
    given = {
        "prompt_ids": torch.randint(4, 24, (4, 5), generator=g) * prompt_mask,
        "prompt_mask": prompt_mask.long(),
        "completion_ids": torch.randint(4, 24, (4, 6), generator=g) * mask,
        "completion_mask": mask.long(),
        "advantages": torch.tensor([1.2, -0.7, 0.5, -0.9]),
        "num_items_in_batch": torch.tensor(41),
    }
    # Around the log-probs of such a model, so that ratios lie on both sides of every clip.
    if old:
        given["old_per_token_logps"] = -3.2 + torch.randn(4, 6, generator=g)
    if ref:
        given["ref_per_token_logps"] = -3.2 + torch.randn(4, 6, generator=g)
    return given


def loss_and_gradients(trainer: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    trainer.model.zero_grad()
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}
