"""Samples from the current policy, by the model's own `generate`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from transformers import GenerationConfig

from .policy import Policy


class Rollout(NamedTuple):
    tokens: list[int]  # the response as sampled, with its end token unless truncated
    truncated: bool


@torch.no_grad()
def sample(
    policy: Policy, prompts: list[list[int]], *, max_new_tokens: int, temperature: float, batch: int
) -> list[Rollout]:
    """One response to each prompt; repeat a prompt for more. temperature 0 is greedy.

    The model's own generation settings (top-k, top-p, penalties) are not used: the samples are the
    policy's distribution, which the log-probs of the loss are taken from.
    """
    drawn = (
        {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        if temperature > 0
        else {"do_sample": False}
    )
    ends = {"eos_token_id": sorted(policy.end_tokens), "pad_token_id": policy.tokenizer.pad_token_id}
    config = GenerationConfig(max_new_tokens=max_new_tokens, **drawn, **ends)
    training = policy.model.training
    policy.model.eval()
    own, policy.model.generation_config = policy.model.generation_config, config
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # like lengths together: less padding
    out: list[Rollout | None] = [None] * len(prompts)
    try:
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            width = max(len(prompts[i]) for i in chosen)
            tokens = torch.full((len(chosen), width), policy.tokenizer.pad_token_id)
            mask = torch.zeros_like(tokens)
            for row, i in enumerate(chosen):
                tokens[row, width - len(prompts[i]) :] = torch.tensor(prompts[i])
                mask[row, width - len(prompts[i]) :] = 1
            with policy.precision():
                full = policy.model.generate(input_ids=tokens.to(policy.device), attention_mask=mask.to(policy.device))
            for i, response in zip(chosen, full[:, width:].tolist(), strict=True):
                out[i] = _until_end(response, policy.end_tokens)
    finally:
        policy.model.generation_config = own
        policy.model.train(training)
    return out


def _until_end(tokens: list[int], end_tokens: set[int]) -> Rollout:
    for position, token in enumerate(tokens):
        if token in end_tokens:
            return Rollout(tokens[: position + 1], truncated=False)
    return Rollout(tokens, truncated=True)
