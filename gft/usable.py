"""Which examples can be used, before the first step: those that have tokens and fit the model, and
whose responses make a group that can be scored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .config import TrainConfig
from .data.files import Example, report_bad_rows
from .groups import given_responses
from .policy import Policy
from .survey import Measured, Survey, measure, notes, survey


def usable_examples(
    policy: Policy, examples: Sequence[Example], config: TrainConfig, say: Callable[[str], None]
) -> list[Example]:
    """The examples that can be trained on. `say` is told what is left out, cut or missing.

    Raises:
        ValueError: there is none, the chat template refuses too many, one needs more positions than
            the model has, or a group would be empty or could not be scored.
    """
    found = survey(policy, examples, config)
    if found.bad:
        report_bad_rows(file_of(examples), found.bad, len(found.measured), config.max_bad_fraction)
    for note in notes(found, config) + check_survey(policy, found, config):
        say(note)
    return [m.example for m in found.usable]


def check_survey(policy: Policy, found: Survey, config: TrainConfig) -> list[str]:
    """Notes on what the groups lack, and on texts that are not what they seem.

    Raises:
        ValueError: no example is left, or those that are cannot be trained on.
    """
    sampling = config.sampling
    if found.long_prompts == len(found.measured):
        raise ValueError(
            f"none of {found.long_prompts} prompts has 1 to {sampling.max_prompt_tokens} tokens (--max-prompt-tokens)."
        )
    if not found.usable:
        raise ValueError(
            f"all given responses of {found.emptied} examples are longer than {sampling.max_given_tokens} tokens: "
            "raise --max-given-tokens, or give --long-given cut."
        )
    kept = [m.example for m in found.usable]
    said = spelled_control_tokens(policy, kept) + check_examples(kept, config)
    check_positions(policy, found.usable, config)
    return said


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
    measured, bad = measure(policy, examples)
    if bad:
        report_bad_rows(file_of(examples), bad, len(measured), max_bad_fraction)
    _refuse_beyond(
        policy,
        [(m, max_new_tokens, "a response") for m in measured],
        f"lower --max-new-tokens, which is {max_new_tokens}, or leave the row out",
    )
    return [m.example for m in measured]


def file_of(examples: Sequence[Example]) -> str:
    """The file that examples come from."""
    return examples[0].origin.rpartition(":")[0]


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
        [
            (m, min(given.tokens, sampling.max_given_tokens), "a given response")
            for m in measured
            for given in m.responses
        ],
        f"lower --max-given-tokens, which is {sampling.max_given_tokens} and "
        f"{sampling.long_given}s longer responses, or {longer_prompts}",
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
    if config.asks_for_rewards():
        unscored = [own or any(r.reward is None for r in responses) for responses in used]
        unsolved = [e.origin for e, ask in zip(examples, unscored, strict=True) if ask and not e.solution.strip()]
        if unsolved:
            raise ValueError(
                f"{len(unsolved)} of {len(examples)} examples have no solution to score responses with, the first: "
                f"{unsolved[0]}. "
                f"{config.objective or 'gft'} needs rewards: add a solution column, or train with --objective sft."
            )
    return notes
