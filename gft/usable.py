"""Which examples can be used, before the first step: those that have tokens and fit the model, and
whose responses make a group that can be scored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from .config import TrainConfig
from .data.files import Example, Response, report_bad_rows
from .groups import given_responses
from .policy import Policy


class Measured(NamedTuple):
    """An example, and the tokens of its prompt and of given responses."""

    example: Example
    prompt: int
    responses: tuple[int, ...] = ()


def usable_examples(
    policy: Policy, examples: Sequence[Example], config: TrainConfig, say: Callable[[str], None]
) -> list[Example]:
    """The examples that can be trained on. `say` is told what is left out or missing.

    Raises:
        ValueError: there is none, the chat template refuses too many, one needs more positions than
            the model has, or a group would be empty or could not be scored.
    """
    limit = config.sampling.max_prompt_tokens
    measured = measure(policy, [(e, given_responses(e, config)) for e in examples], config.max_bad_fraction)
    fitting, dropped = fit_prompts(measured, limit)
    if not fitting:
        raise ValueError(f"none of {dropped} prompts has 1 to {limit} tokens (--max-prompt-tokens).")
    if dropped:
        say(f"{dropped} prompts are empty or longer than {limit} tokens and were left out")
    kept = [m.example for m in fitting]
    for note in spelled_control_tokens(policy, kept) + check_examples(kept, config):
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
    measured = measure(policy, [(e, ()) for e in examples], max_bad_fraction)
    _refuse_beyond(
        policy,
        [(m, max_new_tokens, "a response") for m in measured],
        f"lower --max-new-tokens, which is {max_new_tokens}, or leave the row out",
    )
    return [m.example for m in measured]


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


def measure(
    policy: Policy, pairs: Sequence[tuple[Example, Sequence[Response]]], max_bad_fraction: float
) -> list[Measured]:
    """Tokens of examples and of responses given for them.

    An example that has no tokens, because the chat template refuses it, say, is a bad row, as those
    of a file are.

    Raises:
        ValueError: there are too many of them.
    """
    measured: list[Measured] = []
    bad: list[tuple[str, str]] = []  # (origin, what is wrong)
    for example, responses in pairs:
        try:
            prompt = len(policy.encode_prompt(example.prompt))
            lengths = tuple(len(policy.encode_response(r.text, example.prompt)) for r in responses)
            measured.append(Measured(example, prompt, lengths))
        except ValueError as error:
            bad.append((example.origin, str(error).rstrip(".")))
    if bad:
        file = bad[0][0].rpartition(":")[0]
        report_bad_rows(file, [f"{origin}: {why}" for origin, why in bad], len(measured), max_bad_fraction)
    return measured


def fit_prompts(measured: Sequence[Measured], max_tokens: int) -> tuple[list[Measured], int]:
    """Those whose prompt has 1 to max_tokens tokens, and the number of the others."""
    kept = [m for m in measured if 0 < m.prompt <= max_tokens]
    return kept, len(measured) - len(kept)


def position_limit(policy: Policy) -> int | None:
    """Positions that the model was made for; None where its configuration names no number.

    Beyond them learned positions end in an IndexError, and rotary ones in worse answers without a
    word. A sliding window is no such limit, and a scaling of the rotation is in the number already.
    """
    limit = getattr(policy.model.config.get_text_config(), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def check_positions(policy: Policy, measured: Sequence[Measured], config: TrainConfig) -> None:
    """Refuse prompts that, with the longest response of their group, leave the model's positions.

    Raises:
        ValueError: there is one.
    """
    sampling = config.sampling
    longer_prompts = f"--max-prompt-tokens, which is {sampling.max_prompt_tokens} and leaves longer prompts out"
    if config.composition()[2]:
        _refuse_beyond(
            policy,
            [(m, sampling.max_new_tokens, "a sample") for m in measured],
            f"lower --max-new-tokens, which is {sampling.max_new_tokens}, or {longer_prompts}",
        )
    _refuse_beyond(
        policy,
        [(m, min(tokens, sampling.max_given_tokens), "a given response") for m in measured for tokens in m.responses],
        f"lower --max-given-tokens, which is {sampling.max_given_tokens} and cuts longer responses, or "
        f"{longer_prompts}",
    )


def _refuse_beyond(policy: Policy, needs: Sequence[tuple[Measured, int, str]], way_out: str) -> None:
    """Refuse if a prompt and so many more tokens, of what the words say, pass the model's limit."""
    limit = position_limit(policy)
    beyond = [] if limit is None else [need for need in needs if need[0].prompt + need[1] > limit]
    if beyond:
        first, tokens, what = beyond[0]
        raise ValueError(
            f"{first.example.origin}: a prompt of {first.prompt} tokens and {what} of {tokens} need "
            f"{first.prompt + tokens} positions, and the model has {limit} (max_position_embeddings); so it is for "
            f"{len(beyond)} of {len(needs)}. Way out: {way_out}."
        )


def spelled_control_tokens(policy: Policy, examples: Sequence[Example]) -> list[str]:
    """A note on prompts that spell control tokens: some are chats that a template made text of."""
    spelled = [(e.origin, text) for e in examples if (text := policy.encoding.control.found(e.prompt))]
    if not spelled:
        return []
    origin, text = spelled[0]
    return [
        f"{len(spelled)} prompts spell a control token, the first: {origin}: {text!r}. It stays ordinary text: give "
        "chats as messages, not as the text that a template made of them"
    ]


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
