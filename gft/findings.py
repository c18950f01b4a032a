"""What there is to know of data before a run: what would be left out, and what would teach nothing.

What is left out or refused is found by the functions that the run calls: `survey`, `check_survey`,
`check_examples` and the reward itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from statistics import median
from typing import NamedTuple

from .config import TrainConfig
from .data.files import Example, Source, refuse_bad_rows
from .groups import given_responses
from .policy import Policy
from .rewards.pool import RewardPool
from .rewards.probe import unreadable_solutions
from .survey import Given, Measured, Survey, notes, survey
from .usable import check_examples, check_survey


class Finding(NamedTuple):
    """A kind of row or response, where each stands, and how many there could be."""

    what: str
    places: list[str]  # "file:line: why"
    of: int


class Lengths(NamedTuple):
    """Lengths of prompts or of the responses of a source, and the rewards of these."""

    name: str
    lengths: list[int]
    rewards: list[float]

    def row(self) -> list[str]:
        """Number, median, 95%, longest, mean reward."""
        longest = sorted(self.lengths)
        numbers = [len(longest), median(longest), longest[min(len(longest) * 95 // 100, len(longest) - 1)], longest[-1]]
        mean = f"{sum(self.rewards) / len(self.rewards):.3f}" if self.rewards else "-"
        return [self.name, *(f"{n:.0f}" for n in numbers), mean]


class Inspection(NamedTuple):
    """All that is found in one file."""

    examples: list[Example]  # that the run would take
    findings: list[Finding]
    lengths: list[Lengths]  # in tokens, without a model in characters
    said: list[str]  # what the run would say
    refusals: list[str]  # why it would not begin


def inspect(
    examples: Sequence[Example], bad: list[str], config: TrainConfig, policy: Policy | None, rewards: RewardPool | None
) -> Inspection:
    """Look at the examples and bad rows of a file, as the run by `config` would.

    `rewards` None leaves out whatever asks for a reward.
    """
    refusals: list[str] = []
    rows = len(examples) + len(bad)
    attempt(refusals, lambda: refuse_bad_rows(str(config.data), bad, len(examples), config.max_bad_fraction))
    findings = [Finding("bad rows", bad, rows)]
    said: list[str] = []
    taken = list(examples)
    found = survey(policy, examples, config) if policy and examples else None
    if policy and found:
        if found.bad:
            args = (str(config.data), found.bad, len(found.measured), config.max_bad_fraction)
            attempt(refusals, lambda: refuse_bad_rows(*args))
        said += notes(found, config)
        if found.measured:
            attempt(refusals, lambda: said.extend(check_survey(policy, found, config)))
        findings += _left_out(found, config)
        taken = [m.example for m in found.usable]
    elif examples:
        attempt(refusals, lambda: said.extend(check_examples(examples, config)))
    findings.append(Finding("prompts that stand in the data before", duplicates(examples), len(examples)))
    scored = _scored(taken, config, policy, rewards) if rewards else []
    if rewards:
        unreadable = unreadable_solutions(config.reward_name(), examples)
        findings.append(Finding(f"solutions that {config.reward_name()} cannot read", unreadable, len(examples)))
        findings += _wrong_experts(scored)
    return Inspection(taken, findings, _lengths(examples, found, config, scored), said, refusals)


def attempt(refusals: list[str], check: Callable[[], None]) -> None:
    """Run a check of the run, and note why it refuses."""
    try:
        check()
    except ValueError as error:
        refusals.append(str(error))


def duplicates(examples: Sequence[Example]) -> list[str]:
    """Every prompt that an earlier example has too."""
    first: dict[str, str] = {}
    found = []
    for e in examples:
        before = first.setdefault(json.dumps(e.prompt, default=str), e.origin)
        if before != e.origin:
            found.append(f"{e.origin}: the prompt of {before}")
    return found


def _left_out(found: Survey, config: TrainConfig) -> list[Finding]:
    sampling = config.sampling
    fitting, usable = ({id(m) for m in some} for some in (found.fitting, found.usable))
    long = [f"{m.example.origin}: {m.prompt} tokens" for m in found.measured if id(m) not in fitting]
    given = [f"{e.origin}: {g.tokens} tokens, {g.response.source}" for e, g in found.long_responses]
    lost = [m.example.origin for m in found.fitting if id(m) not in usable]
    fate = "to be cut" if sampling.long_given == "cut" else "to be dropped"
    rows, responses = len(found.measured), sum(len(_given(m, config)) for m in found.fitting)
    return [
        Finding("rows that the tokenizer or chat template refuses", found.bad, rows + len(found.bad)),
        Finding(f"prompts that are empty or above {sampling.max_prompt_tokens} tokens", long, rows),
        Finding(f"given responses above {sampling.max_given_tokens} tokens, {fate}", given, responses),
        Finding("examples without any response left", lost, rows),
    ]


def _given(measured: Measured, config: TrainConfig) -> list[Given]:
    """The responses that were looked at for a group, those that are dropped too."""
    dropped = measured.long if config.sampling.long_given == "drop" else ()
    return [*measured.responses, *dropped]


class _Rewarded(NamedTuple):
    """A response of the data with its reward, or why it has none."""

    origin: str
    source: Source
    reward: float | None
    error: str | None


def _scored(
    examples: Sequence[Example], config: TrainConfig, policy: Policy | None, rewards: RewardPool
) -> list[_Rewarded]:
    """The given responses of the groups with their rewards, those of the data included."""
    pairs = [(e, r) for e in examples for r in given_responses(e, config)]
    unscored = [(e, r) for e, r in pairs if r.reward is None]
    text = policy.response_text if policy else str
    scores = iter(rewards.score([(text(r.text), e) for e, r in unscored], [False] * len(unscored)))
    found = []
    for e, r in pairs:
        value, error = (r.reward, None) if r.reward is not None else next(scores)[:2]
        found.append(_Rewarded(e.origin, r.source, value, error))
    return found


def _wrong_experts(scored: Sequence[_Rewarded]) -> list[Finding]:
    """Experts are right. Where they are not, the reward reads another answer than the data have."""
    experts = [given for given in scored if given.source == "expert"]
    zero = [given.origin for given in experts if given.reward == 0]
    failed = [f"{given.origin}: {given.error}" for given in experts if given.error is not None]
    return [
        Finding("experts with reward 0", zero, len(experts)),
        Finding("experts whose reward fails", failed, len(experts)),
    ]


def _lengths(
    examples: Sequence[Example], found: Survey | None, config: TrainConfig, scored: Sequence[_Rewarded]
) -> list[Lengths]:
    """Lengths of prompts, and of the responses by their source."""
    by_source: dict[str, list[int]] = {}
    if found is None:
        prompts = [len(_text(e)) for e in examples]
        given = [(r.source, len(r.text)) for e in examples for r in given_responses(e, config)]
    else:
        prompts = [m.prompt for m in found.measured]
        given = [(g.response.source, g.tokens) for m in found.fitting for g in _given(m, config)]
    for source, length in given:
        by_source.setdefault(source, []).append(length)
    values = {source: [g.reward for g in scored if g.source == source and g.reward is not None] for source in by_source}
    return ([Lengths("prompt", prompts, [])] if prompts else []) + [
        Lengths(source, lengths, values[source]) for source, lengths in by_source.items()
    ]


def _text(example: Example) -> str:
    """What a prompt says, without its roles."""
    return example.prompt if isinstance(example.prompt, str) else "".join(m["content"] for m in example.prompt)
