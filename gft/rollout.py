"""Samples from the current policy, by the model's own `generate`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from .policy import Policy
from .stop import check


class Rollout(NamedTuple):
    """One sampled response."""

    tokens: list[int]  # with the end token, unless truncated
    truncated: bool
    logprobs: list[float]  # one a token, of the distribution that it was drawn from


class Scores(LogitsProcessor):
    """Holds the logits of one step, and changes nothing."""

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        self.logits = scores
        return scores


class Heed(StoppingCriteria):
    """Ends no sequence.

    After every token it lets a signal end the run, and takes the token's log-prob from the scores.
    No more than one step of them is ever kept, while `output_scores` would keep [B, T, V].
    """

    def __init__(self, temperature: float) -> None:
        self.temperature, self.scores = temperature, Scores()
        self.drawn: list[Tensor] = []  # [B] a step

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        check()
        # A processor that is passed stands before the temperature's own: these are fp32 logits.
        logits = self.scores.logits / self.temperature
        chosen = logits.gather(1, input_ids[:, -1:])[:, 0]
        self.drawn.append(chosen - logits.logsumexp(-1))
        del self.scores.logits
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    def logprobs(self) -> list[list[float]]:
        """[B][T] log-probs; after a sequence's end they are of its padding."""
        return torch.stack(self.drawn, 1).tolist()


@torch.no_grad()
def sample(
    policy: Policy, prompts: list[list[int]], *, max_new_tokens: int, temperature: float, batch: int
) -> list[Rollout]:
    """One response to each prompt; repeat a prompt for more.

    Log-probs are those of the model at `temperature`, in fp32. They are the trainer's own, up to
    the rounding of another batch. Temperature 0 is greedy, with log-probs at temperature 1: the
    distribution that such a token is drawn from gives it a log-prob of 0, which says nothing.

    The model's own generation settings (top-k, top-p, penalties) are not used. With them, tokens
    would be drawn from another distribution than the one whose log-probs the loss is made of.
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
            heed = Heed(temperature or 1.0)
            with policy.precision():
                full = generate(
                    input_ids=tokens.to(policy.device),
                    attention_mask=mask.to(policy.device),
                    stopping_criteria=StoppingCriteriaList([heed]),
                    logits_processor=LogitsProcessorList([heed.scores]),
                    synced_gpus=False,  # a rank of several has all weights here, and ends when it likes
                )
            for i, response, logprobs in zip(chosen, full[:, width:].tolist(), heed.logprobs(), strict=True):
                rollouts[i] = until_end(response, logprobs, policy.end_tokens)
    finally:
        policy.model.generation_config = own
        policy.model.train(training)
    return [rollouts[i] for i in range(len(prompts))]


def forked_random(policy: Policy) -> AbstractContextManager[None]:
    """A block in which others may seed torch's generators: they are left as they were."""
    return torch.random.fork_rng(devices=[policy.device] if policy.device.type == "cuda" else [])


def until_end(tokens: list[int], logprobs: list[float], end_tokens: set[int]) -> Rollout:
    """The tokens up to the first end token; what follows it is padding of the batch."""
    end = next((position + 1 for position, token in enumerate(tokens) if token in end_tokens), None)
    length = end or len(tokens)
    return Rollout(tokens[:length], end is None, logprobs[:length])
