"""Which examples can be used, before the first step: those whose prompt the model takes, and whose
responses make a group that can be scored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from jinja2 import TemplateError

from .config import TrainConfig
from .data.files import Example, report_bad_rows
from .groups import given_responses
from .policy import Policy


class Encoded(NamedTuple):
    """An example with the tokens of its prompt."""

    example: Example
    prompt: list[int]


def usable_examples(
    policy: Policy, examples: Sequence[Example], config: TrainConfig, say: Callable[[str], None]
) -> list[Example]:
    """The examples that can be trained on. `say` is told what is left out or missing.

    Raises:
        ValueError: there is none, the chat template refuses too many, one needs more positions than
            the model has, or a group would be empty or could not be scored.
    """
    limit = config.sampling.max_prompt_tokens
    encoded = encode_prompts(policy, examples, config.max_bad_fraction)
    fitting, dropped = fit_prompts(encoded, limit)
    if not fitting:
        raise ValueError(f"none of {dropped} prompts has 1 to {limit} tokens (--max-prompt-tokens).")
    if dropped:
        say(f"{dropped} prompts are empty or longer than {limit} tokens and were left out")
    kept = [e.example for e in fitting]
    for note in check_examples(kept, config):
        say(note)
    check_positions(policy, fitting, config)
    return kept


def usable_held_out(
    policy: Policy, examples: Sequence[Example], max_new_tokens: int, max_bad_fraction: float
) -> list[Example]:
    """The examples that can be evaluated on.

    Long prompts stay: without them the accuracy would be that of other data.

    Raises:
        ValueError: one has no solution or needs more positions than the model has, or the chat
            template refuses too many.
    """
    check_solved(examples)
    encoded = encode_prompts(policy, examples, max_bad_fraction)
    _refuse_beyond(
        policy,
        [(e, max_new_tokens, "a response") for e in encoded],
        f"lower --max-new-tokens, which is {max_new_tokens}, or leave the row out",
    )
    return [e.example for e in encoded]


def check_solved(examples: Sequence[Example]) -> None:
    """Refuse held-out examples without a solution.

    Raises:
        ValueError: there is one.
    """
    unsolved = [e.origin for e in examples if not e.solution.strip()]
    if unsolved:
        raise ValueError(
            f"{len(unsolved)} of {len(examples)} held-out examples have no solution to score with, the first: "
            f"{unsolved[0]}."
        )


def encode_prompts(policy: Policy, examples: Sequence[Example], max_bad_fraction: float) -> list[Encoded]:
    """The examples that the chat template takes. The others are bad rows, as those of a file are.

    Raises:
        ValueError: there are too many of them.
    """
    encoded: list[Encoded] = []
    bad: list[tuple[str, str]] = []  # (origin, what is wrong)
    for example in examples:
        try:
            encoded.append(Encoded(example, policy.encode_prompt(example.prompt)))
        except (TemplateError, TypeError) as error:  # TypeError: a template that adds text to a list, say
            if isinstance(example.prompt, str):
                raise
            bad.append((example.origin, f"the chat template refuses it: {error}"))
    if bad:
        file = bad[0][0].rpartition(":")[0]
        report_bad_rows(file, [f"{origin}: {why}" for origin, why in bad], len(encoded), max_bad_fraction)
    return encoded


def fit_prompts(encoded: Sequence[Encoded], max_tokens: int) -> tuple[list[Encoded], int]:
    """Those whose prompt has 1 to max_tokens tokens, and the number of the others."""
    kept = [e for e in encoded if 0 < len(e.prompt) <= max_tokens]
    return kept, len(encoded) - len(kept)


def position_limit(policy: Policy) -> int | None:
    """Positions that the model was made for; None where its configuration names no number.

    Beyond them learned positions end in an IndexError, and rotary ones in worse answers without a
    word. A sliding window is no such limit, and a scaling of the rotation is in the number already.
    """
    limit = getattr(policy.model.config.get_text_config(), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def check_positions(policy: Policy, encoded: Sequence[Encoded], config: TrainConfig) -> None:
    """Refuse prompts that, with the longest response of their group, leave the model's positions.

    Raises:
        ValueError: there is one.
    """
    sampling, own = config.sampling, config.composition()[2]
    if own:
        _refuse_beyond(
            policy,
            [(e, sampling.max_new_tokens, "a sample") for e in encoded],
            f"lower --max-new-tokens, which is {sampling.max_new_tokens}, or --max-prompt-tokens, which is "
            f"{sampling.max_prompt_tokens} and leaves longer prompts out",
        )
    limit, longest = position_limit(policy), max(len(e.prompt) for e in encoded)
    if limit is None or longest + sampling.max_given_tokens <= limit:
        return  # whatever the responses are: they need not be tokenised for this
    _refuse_beyond(
        policy,
        [
            (e, min(len(policy.encode_response(r.text)), sampling.max_given_tokens), f"a response of the {r.source}")
            for e in encoded
            for r in given_responses(e.example, config)
        ],
        f"lower --max-given-tokens, which is {sampling.max_given_tokens} and cuts longer responses, or "
        f"--max-prompt-tokens, which is {sampling.max_prompt_tokens} and leaves longer prompts out",
    )


def _refuse_beyond(policy: Policy, needs: Sequence[tuple[Encoded, int, str]], way_out: str) -> None:
    """Refuse if a prompt and so many more tokens, of what the words say, pass the model's limit."""
    limit = position_limit(policy)
    beyond = [] if limit is None else [need for need in needs if len(need[0].prompt) + need[1] > limit]
    if beyond:
        encoded, tokens, what = beyond[0]
        raise ValueError(
            f"{encoded.example.origin}: a prompt of {len(encoded.prompt)} tokens and {what} of {tokens} need "
            f"{len(encoded.prompt) + tokens} positions, and the model has {limit} (max_position_embeddings); so it is "
            f"for {len(beyond)} of {len(needs)}. Way out: {way_out}."
        )


def check_examples(examples: Sequence[Example], config: TrainConfig) -> list[str]:
    """Notes on responses that the configuration asks for and the data lack.

    Raises:
        ValueError: a group would be empty, or could not be scored.
    """
    experts, teachers, own = config.composition()
    used = [given_responses(e, config) for e in examples]
    notes = []
    for source, asked in (("expert", experts), ("teacher", teachers)):
        found = sum(r.source == source for responses in used for r in responses) / len(examples)
        if found < asked:
            notes.append(f"{source} responses in the data: {found:.3g} a group, {asked} asked for")
    empty = [e.origin for e, responses in zip(examples, used, strict=True) if not own and not responses]
    if empty:
        raise ValueError(
            f"{len(empty)} of {len(examples)} examples have no response to train on, the first: {empty[0]}. Give "
            "--own, or drop them."
        )
    if "advantages" in config.objective_function().needs:
        unscored = [own or any(r.reward is None for r in responses) for responses in used]
        unsolved = [e.origin for e, ask in zip(examples, unscored, strict=True) if ask and not e.solution.strip()]
        if unsolved:
            raise ValueError(
                f"{len(unsolved)} of {len(examples)} examples have no solution to score responses with, the first: "
                f"{unsolved[0]}. "
                f"{config.objective or 'gft'} needs rewards: add a solution column, or train with --objective sft."
            )
    return notes
