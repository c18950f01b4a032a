"""Responses given in the data set, which take the first places of each group.

A group of G places with m given responses is then given[0], ..., given[m-1], own, ..., own. TRL
repeats a prompt G times in a row and deals the rows out to processes in equal parts, so a row's
place is (process * rows + i) mod G.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

COLUMN = "given"


@dataclass(frozen=True)
class GivenResponses:
    """What `given_responses` found in a data set."""

    tokenizer: Any
    column: str
    count: int  # responses a row, all rows alike
    longest: int  # tokens, with the end token

    def tokens(self, row: dict[str, Any], place: int) -> list[int]:
        """Token ids of the response at `place` of a row of the data set, with the end token."""
        return _tokens(self.tokenizer, _text(row[self.column][place]))


def given_responses(dataset: Any, tokenizer: Any, column: str = COLUMN) -> GivenResponses:
    """Expert or teacher responses of a data set, for `GFTTrainer(given=...)`.

    Args:
        dataset: a data set whose `column` has in each row a list of responses to its prompt, equal
            in number. A response is a text, or a conversation's one assistant message. Other
            columns go to the reward functions as ever.
        tokenizer: the one that the trainer is given. It must have an end token, with which every
            given response ends.
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
    count = longest = None
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
        longest = max(longest or 0, *(len(_tokens(tokenizer, _text(response))) for response in found))
    if count is None or longest is None:
        raise ValueError("the data set is empty.")
    return GivenResponses(tokenizer, column, count, longest)


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


def _tokens(tokenizer: Any, text: str) -> list[int]:
    """As the policy would have sampled it: the text alone, then the end token."""
    return [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
