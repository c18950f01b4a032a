"""The embedded base model: a Qwen2 of 0.2M parameters, pre-trained in half a minute on a corpus of
mixed quality.

The corpus answers the task of `sort_letters` ascending (66.5%), descending (3.5%) or lazily (30%),
with a slip now and then. Greedily the pre-trained model sorts about nine questions in ten, but only
a third of its samples are right. Nothing is downloaded.
"""

from __future__ import annotations

import math
import random
import string
from collections.abc import Callable

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from gft_kernels import linear_policy_loss, sft

from .sort_letters import LENGTH, corpus_line

PRETRAIN_STEPS = 250


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a character."""
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", "=", *string.ascii_lowercase])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<pad>",
        pad_token="<pad>",
        eos_token="<eos>",
        clean_up_tokenization_spaces=False,
    )


def untrained(seed: int) -> Qwen2ForCausalLM:
    """The model with random weights, which the seed decides."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=29,
        hidden_size=96,
        intermediate_size=288,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    return Qwen2ForCausalLM(config)


def rate(step: int) -> float:
    """Share of the highest learning rate at a step: 30 steps of warm-up, then a cosine."""
    return min(1, (step + 1) / 30) * max(0.05, 0.5 * (1 + math.cos(math.pi * step / PRETRAIN_STEPS)))


def pretrain(seed: int, on_step: Callable[[int, float], None] = lambda step, loss: None) -> Qwen2ForCausalLM:
    """The base model: PRETRAIN_STEPS steps of next-token training on the answers of the corpus.

    `on_step` is told the number of a step and its loss.
    """
    model, rng, encode = untrained(seed), random.Random(seed), tokenizer()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    start = LENGTH + 1  # the first token of an answer: every question has eight letters and `=`
    for step in range(PRETRAIN_STEPS):
        tokens = torch.tensor(
            [[*encode(q + a).input_ids, encode.eos_token_id] for q, a in (corpus_line(rng) for _ in range(128))]
        )
        hidden = model.base_model(tokens).last_hidden_state[:, start - 1 : -1]
        loss = linear_policy_loss(
            hidden.flatten(0, 1), model.lm_head.weight, tokens[:, start:].flatten(), objective=sft()
        ).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        on_step(step, loss.item())
    return model.eval()
