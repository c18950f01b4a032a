"""Responses given in the data set, which take the first places of each group.

A group of G places with m given responses is then given[0], ..., given[m-1], own, ..., own. TRL
repeats a prompt G times in a row and deals the rows out to processes in equal parts, so a row's
place is (process * rows + i) mod G.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .objective import refuse

COLUMN = "given"


@dataclass(frozen=True)
class GivenResponses:
    """What `given_responses` found in a data set."""

    tokenizer: Any
    column: str
    count: int  # responses a row, all rows alike
    longest: int  # tokens, with the end token
    end_token: int

    def tokens(self, row: dict[str, Any], place: int) -> list[int]:
        """Token ids of the response at `place` of a row of the data set, with the end token."""
        return _tokens(self.tokenizer, _text(row[self.column][place]), self.end_token)


def given_responses(dataset: Any, tokenizer: Any, column: str = COLUMN) -> GivenResponses:
    """Expert or teacher responses of a data set, for `GFTTrainer(given=...)`.

    Args:
        dataset: a data set whose `column` has in each row a list of responses to its prompt, equal
            in number. A response is a text, or a conversation's one assistant message. Other
            columns go to the reward functions as ever.
        tokenizer: the one that the trainer is given. It must have an end token, with which every
            given response ends: the one that the chat template writes after an answer where
            prompts are conversations, else its eos_token.
        column: the column's name.

    Raises:
        ValueError: no such column, rows with different numbers of responses, an empty response, or
            a tokenizer without an end token.
        TypeError: a response that is neither a text nor an assistant's message.

    Cost: one pass over the column, each response tokenised, to know the longest.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError(
            "the tokenizer has no eos_token, with which a given response must end: set tokenizer.eos_token."
        )
    if column not in (dataset.column_names or ()):
        raise ValueError(
            f"the data set has no column {column!r} of given responses, only {dataset.column_names}: give column=."
        )
    count = longest = end_token = None
    for number, row in enumerate(dataset):
        found = row[column]
        if not isinstance(found, list) or not found:
            raise ValueError(
                f"row {number} has {found!r:.60} in column {column!r}: give a list of one response or more."
            )
        if count is not None and len(found) != count:
            raise ValueError(
                f"row {number} has {len(found)} given responses and the rows before have {count}: each group must hold "
                "as many as any other."
            )
        count = len(found)
        if end_token is None:
            end_token = _end_token(tokenizer, conversation=not isinstance(row.get("prompt"), str))
        longest = max(longest or 0, *(len(_tokens(tokenizer, _text(response), end_token)) for response in found))
    if count is None or longest is None or end_token is None:
        raise ValueError("the data set is empty.")
    return GivenResponses(tokenizer, column, count, longest, end_token)


def check_given(trainer: Any, given: GivenResponses) -> None:
    """Given responses must reach the trainer and fit in every group, whole, on every process alike.

    Raises:
        ValueError: they do not, or the trainer has turns or columns that do not go with them.
    """
    args, group = trainer.args, trainer.num_generations
    found = [
        f"{name} (given responses come in no turns)"
        for name in ("rollout_func", "environment_factories")
        if getattr(trainer, name) is not None
    ]
    found += ["tools (given responses come in no turns)"] if trainer.tools else []
    found += ["remove_unused_columns=True (it takes the given responses away)"] if args.remove_unused_columns else []
    refuse("trainer with given responses", found)
    columns = trainer.train_dataset.column_names
    if columns and given.column not in columns:
        raise ValueError(f"train_dataset has no column {given.column!r} of given responses, only {columns}.")
    if given.end_token not in trainer.eos_token_ids:
        raise ValueError(
            f"given responses end with token {given.end_token}, and the trainer's with {trainer.eos_token_ids}: give "
            "given_responses the tokenizer that the trainer has, or set model.generation_config.eos_token_id."
        )
    if given.count > group:
        raise ValueError(
            f"the data set gives {given.count} responses a row, and num_generations={group} has no room for them."
        )
    if given.longest > (trainer.max_completion_length or given.longest):
        raise ValueError(
            f"the longest given response has {given.longest} tokens, and max_completion_length="
            f"{trainer.max_completion_length}: it would be scored without its end. Raise it, or leave such rows out."
        )
    rows = args.per_device_train_batch_size * args.steps_per_generation
    if trainer.accelerator.num_processes > 1 and rows % group:
        raise ValueError(
            f"each process generates {rows} responses at once (per_device_train_batch_size x steps_per_generation), no "
            f"multiple of num_generations={group}: with given responses every process must sample as many as any other."
        )


def _text(response: Any) -> str:
    if isinstance(response, list) and len(response) == 1 and response[0].get("role") == "assistant":
        response = response[0].get("content")
    if not isinstance(response, str):
        raise TypeError(
            f"a given response is {response!r:.60}: give a text, or a list of one message of role 'assistant' whose "
            "content is a text."
        )
    if not response:
        raise ValueError("a given response is empty.")
    return response


def _tokens(tokenizer: Any, text: str, end_token: int) -> list[int]:
    """As the policy would have sampled it: the text alone, then the end token."""
    return [*tokenizer(text, add_special_tokens=False)["input_ids"], end_token]


def _end_token(tokenizer: Any, conversation: bool) -> int:
    """With which an answer ends. Gemma's turns, for one, end with another token than its texts."""
    if conversation and tokenizer.chat_template is not None:
        turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
        after = tokenizer.apply_chat_template(turns, tokenize=False).rpartition("answer")[2]
        tokens = tokenizer(after, add_special_tokens=False)["input_ids"]
        return next((token for token in tokens if token in tokenizer.all_special_ids), tokenizer.eos_token_id)
    return tokenizer.eos_token_id
