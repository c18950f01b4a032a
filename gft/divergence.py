"""KL of a model to the base that it was trained from, on the model's own samples.

For a sample y of the model p, and the base q, with r_t = q(y_t | y_<t) / p(y_t | y_<t):

    k1 = sum_t -log r_t             without bias; a single one may be negative
    k3 = sum_t r_t - 1 - log r_t    without bias too, never negative

Both estimate KL(p || q) of a whole response in nats (http://joschu.net/blog/kl-approx.html). Their
means over tokens divide the sum over all samples by the number of all tokens. Log-probs come from
the fused head, at the temperature that the samples were drawn at; full logits are never formed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .config import TrainConfig
from .data.files import Example
from .estimates import Estimate, estimate
from .groups import Member
from .held_out import Answer
from .logprobs import token_logprobs
from .parts import OptimConfig
from .policy import Policy


def members_of(policy: Policy, examples: Sequence[Example], answers: Sequence[Answer]) -> list[Member]:
    """Answers as prompts and responses in the tokens of the policy that gave them."""
    prompts = [policy.encode_prompt(e.prompt) for e in examples]
    return [
        Member(
            group=a.prompt_index,
            source="self",
            prompt=prompts[a.prompt_index],
            response=list(a.tokens),
            text=a.response,
            truncated=a.truncated,
            example=examples[a.prompt_index],
        )
        for a in answers
    ]


def response_logprobs(policy: Policy, members: Sequence[Member], batch: int) -> list[list[float]]:
    """log p of the tokens of every response, at the temperature of the policy's head.

    Cost: a forward pass of the backbone and 2NDV for the head, `batch` responses at once.
    """
    return token_logprobs(policy, members, TrainConfig(optim=OptimConfig(micro_batch=batch)))


def kl_to_base(
    answers: Sequence[Answer], own: Sequence[list[float]], base: Sequence[list[float]]
) -> dict[str, Estimate]:
    """`kl` and `kl_k3` in nats a response, `kl_token` and `kl_k3_token` in nats a token.

    `own` and `base` are the log-probs of the answers' tokens under the two models. Intervals draw
    prompts anew, as those of the accuracies.
    """
    sums: dict[int, list[float]] = {}  # of a prompt: k1, k3, tokens, samples
    for answer, p, q in zip(answers, own, base, strict=True):
        log_r = np.array(q) - np.array(p)
        values = [-log_r.sum(), (np.expm1(log_r) - log_r).sum(), len(p), 1]
        had = sums.setdefault(answer.prompt_index, [0.0] * 4)
        sums[answer.prompt_index] = [a + b for a, b in zip(had, values, strict=True)]
    k1, k3, tokens, samples = (list(column) for column in zip(*sums.values(), strict=True))
    return {
        "kl": estimate(k1, samples),
        "kl_k3": estimate(k3, samples),
        "kl_token": estimate(k1, tokens),
        "kl_k3_token": estimate(k3, tokens),
    }


def check_same_tokens(policy: Policy, base: Policy, option: str) -> None:
    """Refuse a base whose tokens are others: its probabilities would be those of other texts.

    Raises:
        ValueError: its vocabulary differs.
    """
    ours, theirs = policy.tokenizer.get_vocab(), base.tokenizer.get_vocab()
    if ours != theirs:
        differ = sum(theirs.get(token) != i for token, i in ours.items()) + len(theirs.keys() - ours.keys())
        raise ValueError(f"{option} has another vocabulary than --model ({differ} tokens differ): give its own base.")
