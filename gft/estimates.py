"""Numbers that answers to held-out prompts give, with the uncertainty that comes from the prompts.

mean@n      mean reward of all samples
pass@k      1 - C(n - c, k) / C(n, k), a prompt's chance that one of k samples is right, estimated
            without bias from n samples of which c are right (arXiv:2107.03374)
distinct    different texts among a prompt's samples, as a share of them
distinct_2  different pairs of neighbouring tokens in a prompt's samples, as a share of all of
            them (arXiv:1510.03055)

The answers to one prompt are alike, so an interval draws prompts anew and not answers (a cluster
bootstrap). It says how far the number would move with other prompts of the same kind.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from .held_out import Answer

PASSED = 1.0  # a graded reward passes where it is full, and nowhere else
RESAMPLES, LEVEL = 2000, 0.95
BLOCK = 1 << 22  # draws at once


class Estimate(NamedTuple):
    """A value and its interval; the bounds are NaN where there are fewer than two prompts."""

    value: float
    low: float
    high: float


NOTHING = Estimate(math.nan, math.nan, math.nan)


def estimate(tops: Iterable[float], bottoms: Iterable[float] | None = None) -> Estimate:
    """sum(tops) / sum(bottoms) over prompts, with a bootstrap interval of 95%.

    Without bottoms it is the mean of tops. A prompt whose bottom is 0 counts for nothing. The draws
    have a fixed seed: the same numbers have the same interval. Where all prompts agree it has no
    width, which is no proof that the next prompt will.

    Equivalent to::

        drawn = rng.integers(P, size=(2000, P))
        low, high = np.quantile(tops[drawn].sum(1) / bottoms[drawn].sum(1), [0.025, 0.975])

    Cost: 2000 P draws.
    """
    top = np.array(list(tops), dtype=np.float64)
    bottom = np.ones_like(top) if bottoms is None else np.array(list(bottoms), dtype=np.float64)
    top, bottom = top[bottom > 0], bottom[bottom > 0]
    count = len(top)
    if count == 0:
        return NOTHING
    value = float(top.sum() / bottom.sum())
    if count == 1:
        return Estimate(value, math.nan, math.nan)
    rng, drawn = np.random.default_rng(0), []
    rows = max(1, BLOCK // count)
    for start in range(0, RESAMPLES, rows):
        places = rng.integers(count, size=(min(rows, RESAMPLES - start), count))
        drawn.append(top[places].sum(1) / bottom[places].sum(1))
    low, high = np.quantile(np.concatenate(drawn), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high))


def pass_at(count: int, right: int, k: int) -> float:
    """The chance that k of `count` samples, drawn without replacement, hold one of the `right`."""
    return 1.0 - math.comb(count - right, k) / math.comb(count, k)


def powers_to(count: int) -> list[int]:
    """1, 2, 4, 8, ... and `count` itself."""
    return sorted({*(2**i for i in range(count.bit_length())), count}) if count else []


def by_prompt(answers: Iterable[Answer]) -> dict[int, list[Answer]]:
    """The answers to every prompt."""
    found: dict[int, list[Answer]] = defaultdict(list)
    for answer in answers:
        found[answer.prompt_index].append(answer)
    return dict(found)


def mean_reward(answers: Sequence[Answer]) -> Estimate:
    """The mean reward of answers; those without a reward are left out."""
    rewards = [[a.reward for a in group if a.reward is not None] for group in by_prompt(answers).values()]
    return estimate([sum(r) for r in rewards], [len(r) for r in rewards])


def pass_at_k(answers: Sequence[Answer]) -> dict[int, Estimate]:
    """pass@k of samples for k = 1, 2, 4, ... and their number a prompt.

    A prompt with fewer than k scored samples has no pass@k, and is left out of it.
    """
    rewards = [[a.reward for a in group if a.reward is not None] for group in by_prompt(answers).values()]
    counted = [(len(r), sum(reward >= PASSED for reward in r)) for r in rewards]
    most = max((count for count, _ in counted), default=0)
    return {k: estimate([pass_at(*pair, k) for pair in counted if pair[0] >= k]) for k in powers_to(most)}


def diversity(answers: Sequence[Answer]) -> dict[str, float]:
    """`distinct` and `distinct_2` of samples, each the mean over prompts that have it."""
    groups = by_prompt(answers).values()
    texts = [len({a.response.strip() for a in group}) / len(group) for group in groups]
    pairs = [[pair for a in group for pair in pairwise(a.tokens)] for group in groups]
    found = {"distinct": texts, "distinct_2": [len(set(p)) / len(p) for p in pairs if p]}
    return {name: sum(values) / len(values) for name, values in found.items() if values}


def summary(answers: Sequence[Answer]) -> dict[str, float]:
    """Every number of an evaluation under its name; a bound of an interval ends in _low or _high.

    What cannot be had is left out: the numbers are finite.
    """
    greedy = [a for a in answers if a.source == "greedy"]
    sampled = [a for a in answers if a.source == "sample"]
    estimates = {"greedy": mean_reward(greedy), "sampled": mean_reward(sampled)}
    estimates |= {f"pass_at_{k}": found for k, found in pass_at_k(sampled).items()}
    numbers: dict[str, float] = {}
    for name, found in estimates.items():
        numbers |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
    means: dict[str, Callable[[Answer], float]] = {
        "response_tokens": lambda a: len(a.tokens),
        "truncated": lambda a: a.truncated,
    }
    for name, of in means.items():
        numbers[name] = sum(map(of, sampled or greedy)) / len(sampled or greedy) if answers else math.nan
    return {name: value for name, value in {**numbers, **diversity(sampled)}.items() if math.isfinite(value)}


def paired_difference(ours: Sequence[Answer], theirs: Sequence[Answer]) -> tuple[Estimate, int]:
    """Mean reward of `ours` less that of `theirs` over the prompts both answered, and their number.

    A prompt's own difficulty is in both and falls out, so that the interval is narrower than those
    of the two means let one guess.
    """
    means = [_means_by_id(answers) for answers in (ours, theirs)]
    shared = sorted(means[0].keys() & means[1].keys())
    return estimate([means[0][i] - means[1][i] for i in shared]), len(shared)


def _means_by_id(answers: Sequence[Answer]) -> dict[str, float]:
    rewards: dict[str, list[float]] = defaultdict(list)
    for answer in answers:
        if answer.reward is not None:
            rewards[answer.prompt_id].append(answer.reward)
    return {name: sum(values) / len(values) for name, values in rewards.items()}
