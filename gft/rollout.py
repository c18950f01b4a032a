"""Samples from the current policy, by the model's own `generate`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from .policy import Policy
from .stop import check


class Rollout(NamedTuple):
    """One sampled response."""

    tokens: list[int]  # with the end token, unless truncated
    truncated: bool


class Heed(StoppingCriteria):
    """Ends no sequence; after every token it lets a signal end the run."""

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        check()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


@torch.no_grad()
def sample(
    policy: Policy, prompts: list[list[int]], *, max_new_tokens: int, temperature: float, batch: int
) -> list[Rollout]:
    """One response to each prompt; repeat a prompt for more.

    Temperature 0 is greedy. The model's own generation settings (top-k, top-p, penalties) are not
    used. With them, tokens would be drawn from another distribution than the one whose log-probs
    the loss is made of.
    """
    drawn = (
        {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        if temperature > 0
        else {"do_sample": False}
    )
    ends = {"eos_token_id": sorted(policy.end_tokens), "pad_token_id": policy.tokenizer.pad_token_id}
    config = GenerationConfig(max_new_tokens=max_new_tokens, **drawn, **ends)
    generate = cast(Callable[..., Tensor], policy.model.generate)  # a mixin's, which PreTrainedModel's type hides
    training = policy.model.training
    policy.model.eval()
    # Put in place of the model's own, and not passed to generate(): what a passed one leaves unset,
    # generate() fills in from the model's own.
    own, policy.model.generation_config = policy.model.generation_config, config
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # like lengths together: less padding
    rollouts: dict[int, Rollout] = {}
    try:
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            width = max(len(prompts[i]) for i in chosen)
            tokens = torch.full((len(chosen), width), policy.tokenizer.pad_token_id)
            mask = torch.zeros_like(tokens)
            for row, i in enumerate(chosen):  # padded on the left: generate() appends at the right end
                tokens[row, width - len(prompts[i]) :] = torch.tensor(prompts[i])
                mask[row, width - len(prompts[i]) :] = 1
            with policy.precision():
                full = generate(
                    input_ids=tokens.to(policy.device),
                    attention_mask=mask.to(policy.device),
                    stopping_criteria=StoppingCriteriaList([Heed()]),
                )
            for i, response in zip(chosen, full[:, width:].tolist(), strict=True):
                rollouts[i] = _until_end(response, policy.end_tokens)
    finally:
        policy.model.generation_config = own
        policy.model.train(training)
    return [rollouts[i] for i in range(len(prompts))]


def _until_end(tokens: list[int], end_tokens: set[int]) -> Rollout:
    """The tokens up to the first end token; what follows it is padding of the batch."""
    for position, token in enumerate(tokens):
        if token in end_tokens:
            return Rollout(tokens[: position + 1], truncated=False)
    return Rollout(tokens, truncated=True)
