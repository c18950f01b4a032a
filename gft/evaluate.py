"""Held-out accuracy: of the greedy response, and the mean over samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import torch

from .data.files import Example
from .distributed import agreed, gather, share, stream_seed, world_size
from .estimates import summary
from .held_out import Answer, prompt_id
from .policy import Policy
from .rewards.pool import RewardPool
from .rollout import Rollout, sample
from .usable import check_solved

STRIDE = 2**32 + 15  # between the seeds of two batches: those of runs and of ranks are nowhere so far apart


class Accuracy(NamedTuple):
    """Mean rewards; NaN where no response could be scored."""

    greedy: float
    sampled: float  # mean reward of all samples
    samples: int  # per prompt
    errors: int  # responses whose checker failed; they are left out of the means
    numbers: dict[str, float]  # intervals, pass@k, ...: see `summary`; all finite

    def row(self) -> dict[str, float | int]:
        """The numbers as metrics.jsonl names them."""
        means = {"greedy": self.greedy, "sampled": self.sampled, "errors": self.errors}
        return {f"eval_{name}": value for name, value in {**means, **self.numbers}.items()}


class Request(NamedTuple):
    """A response that is asked for."""

    place: int  # of the prompt
    source: Literal["greedy", "sample"]
    sample: int


def evaluate(
    policy: Policy,
    examples: Sequence[Example],
    rewards: RewardPool,
    *,
    samples: int = 16,
    max_new_tokens: int = 512,
    batch: int = 128,
    temperature: float = 1.0,
    seed: int = 0,
    done: Sequence[Answer] = (),
    keep: Callable[[Sequence[Answer]], None] = lambda answers: None,
) -> Accuracy:
    """Mean reward of the greedy response and of `samples` samples a prompt.

    The samples are drawn from `seed`, and the caller's random state is left as it was. So the same
    model gets the same accuracy again, and a run that evaluates more often samples the same. Every
    batch has a seed of its own: an evaluation that was interrupted goes on behind the answers
    `done`, and has the numbers of one that was not. `keep` is handed the new answers of each batch;
    where processes share the prompts, those of all of them at the end.

    Raises:
        ValueError: an example has no solution to score with.
    """
    check_solved(examples)
    places = share(range(len(examples)))
    prompts = {place: policy.encode_prompt(examples[place].prompt) for place in places}
    answers, planned = list(done), 0
    with agreed():
        for number, asked in requests(prompts, samples, batch):
            planned += len(asked)
            missing = planned - len(answers)
            if missing <= 0:
                continue
            # A batch that was cut short is sampled as a whole: its numbers depend on all of it.
            with torch.random.fork_rng(devices=[policy.device] if policy.device.type == "cuda" else []):
                torch.manual_seed((stream_seed(seed) + STRIDE * number) % 2**63)
                heat = temperature if asked[0].source == "sample" else 0.0
                chosen = [prompts[r.place] for r in asked]
                rollouts = sample(policy, chosen, max_new_tokens=max_new_tokens, temperature=heat, batch=batch)
            fresh = _scored(policy, examples, rewards, list(zip(asked, rollouts, strict=True))[-missing:])
            answers += fresh
            if world_size() == 1:
                keep(fresh)
    if world_size() > 1:
        answers = [answer for of_rank in gather(answers) for answer in of_rank]
        keep(answers)
    return accuracy(answers, samples)


def requests(prompts: Mapping[int, list[int]], samples: int, batch: int) -> Iterator[tuple[int, list[Request]]]:
    """The batches of an evaluation, greedy ones first, each with its number among its kind.

    Prompts of like length are side by side, as in `sample`. The plan follows from its arguments
    alone, so that an evaluation that goes on has the batches of the one that was interrupted.
    """
    greedy = [Request(place, "greedy", 0) for place in prompts]
    drawn = [Request(place, "sample", k) for k in range(samples) for place in prompts]
    for wanted in (greedy, drawn):
        wanted.sort(key=lambda r: len(prompts[r.place]))
        for number, start in enumerate(range(0, len(wanted), batch)):
            yield number, wanted[start : start + batch]


def _scored(
    policy: Policy, examples: Sequence[Example], rewards: RewardPool, made: Sequence[tuple[Request, Rollout]]
) -> list[Answer]:
    texts = [policy.decode(rollout.tokens) for _, rollout in made]
    of = [examples[request.place] for request, _ in made]
    scores = rewards.score(list(zip(texts, of, strict=True)), [rollout.truncated for _, rollout in made])
    return [
        Answer(
            prompt_index=request.place,
            prompt_id=prompt_id(example),
            source=request.source,
            sample=request.sample,
            reward=score.value,
            error=score.error,
            truncated=rollout.truncated,
            prompt=example.prompt,
            response=text,
            solution=example.solution,
            tokens=rollout.tokens,
        )
        for (request, rollout), text, example, score in zip(made, texts, of, scores, strict=True)
    ]


def accuracy(answers: Sequence[Answer], samples: int) -> Accuracy:
    """What the answers say."""
    numbers = summary(answers)
    means = [numbers.pop(name, float("nan")) for name in ("greedy", "sampled")]
    return Accuracy(means[0], means[1], samples, sum(a.reward is None for a in answers), numbers)
