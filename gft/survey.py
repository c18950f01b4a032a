"""The tokens of examples, and what of them the limits of length leave."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from .config import TrainConfig
from .data.files import Example, Response
from .groups import given_responses
from .policy import Policy


class Given(NamedTuple):
    """A response of the data, and its tokens with the end token."""

    response: Response
    tokens: int


class Measured(NamedTuple):
    """An example, and the tokens of its prompt and of the responses that its group takes.

    `long` are those above --max-given-tokens. They are in `responses` too if they are to be cut,
    and else not in the example any more.
    """

    example: Example
    prompt: int
    responses: tuple[Given, ...] = ()
    long: tuple[Given, ...] = ()


class Survey(NamedTuple):
    """Examples in the order of the data; each list is a part of the one before.

    `bad` are rows that have no tokens, because the chat template refuses them, say.
    """

    bad: list[str]  # "file:line: what is wrong with it"

    measured: list[Measured]
    fitting: list[Measured]  # by the length of their prompt
    usable: list[Measured]  # and they have not lost all of their responses

    @property
    def long_prompts(self) -> int:
        """Examples that are left out for their prompt."""
        return len(self.measured) - len(self.fitting)

    @property
    def emptied(self) -> int:
        """Examples that are left out for their responses."""
        return len(self.fitting) - len(self.usable)

    @property
    def long_responses(self) -> list[tuple[Example, Given]]:
        """Given responses that are dropped or cut."""
        return [(m.example, given) for m in self.fitting for given in m.long]


def survey(policy: Policy, examples: Sequence[Example], config: TrainConfig) -> Survey:
    """Measure examples, and leave out what is too long."""
    measured, bad = measure(policy, examples, config)
    fitting = [m for m in measured if 0 < m.prompt <= config.sampling.max_prompt_tokens]
    own = config.composition()[2]
    return Survey(bad, measured, fitting, [m for m in fitting if own or m.responses or not m.long])


def measure(
    policy: Policy, examples: Sequence[Example], config: TrainConfig | None = None
) -> tuple[list[Measured], list[str]]:
    """Tokens of prompts and, with a configuration, of the responses that their groups take.

    An example that has no tokens is a bad row, as those of a file are. They are returned in words.
    """
    measured: list[Measured] = []
    bad: list[str] = []
    for example in examples:
        try:
            found = Measured(example, len(policy.encode_prompt(example.prompt)))
            measured.append(found if config is None else _with_responses(policy, found, config))
        except ValueError as error:
            bad.append(f"{example.origin}: {str(error).rstrip('.')}")
    return measured, bad


def _with_responses(policy: Policy, found: Measured, config: TrainConfig) -> Measured:
    """The same with the responses of its group. Where one is dropped, the next takes its place."""
    tokens: dict[int, Given] = {}  # by the identity of a response: two may be equal
    sampling, example = config.sampling, found.example
    dropped: list[Given] = []
    while True:
        for r in given_responses(example, config):
            if id(r) not in tokens:
                tokens[id(r)] = Given(r, len(policy.encode_response(r.text, example.prompt)))
        used = [tokens[id(r)] for r in given_responses(example, config)]
        long = [given for given in used if given.tokens > sampling.max_given_tokens]
        if not long or sampling.long_given == "cut":
            return Measured(example, found.prompt, tuple(used), (*dropped, *long))
        dropped += long
        left = [r for r in example.responses if not any(r is given.response for given in long)]
        example = replace(example, responses=tuple(left))


def notes(found: Survey, config: TrainConfig) -> list[str]:
    """What is left out or cut, in words."""
    sampling = config.sampling
    said = []
    if found.long_prompts:
        said.append(
            f"{found.long_prompts} prompts are empty or longer than {sampling.max_prompt_tokens} tokens and were left "
            "out"
        )
    long = found.long_responses
    if long:
        example, longest = max(long, key=lambda pair: pair[1].tokens)
        sources = Counter(given.response.source for _, given in long)
        fate = (
            "are cut there: they are scored by their whole text, and trained on without an end"
            if sampling.long_given == "cut"
            else "were dropped from their groups (--long-given cut trains on their beginnings)"
        )
        said.append(
            f"{len(long)} given responses ({', '.join(f'{n} {source}' for source, n in sources.items())}) are longer "
            f"than {sampling.max_given_tokens} tokens (--max-given-tokens) and {fate}; the longest has "
            f"{longest.tokens}, {example.origin}"
        )
    if found.emptied:
        said.append(f"{found.emptied} examples have no other response and were left out")
    return said
