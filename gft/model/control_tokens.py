"""Text that spells a control token is encoded as the text that it is.

A tokenizer finds "<|im_end|>" wherever it stands, also in a question about chat formats. A prompt
could then end its own turn and open one of the system's. So two things are told apart here: what a
chat template wrote, and what stands in the data. `mark` puts a stand-in for every control token's
text in the data. The template then writes its own around it, and `encode` makes tokens of the
latter only.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, cast

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

# Private-use characters, which stand in no text: around the number of a control token whose text
# the data hold, and of one that the template wrote.
TEXT, WRITTEN = "\U0010fffd", "\U0010fffc"


class ControlTokens:
    """The control tokens of a tokenizer.

    Args:
        tokens: text and id of each.
        may_be_text: ids of those that ordinary text can become as well: the unknown token.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, tokens: Mapping[str, int], may_be_text: frozenset[int] = frozenset()
    ) -> None:
        self.tokenizer = tokenizer
        self.texts = list(tokens)
        self.ids = dict(tokens)
        self.number = {text: number for number, text in enumerate(self.texts)}
        self.watched = set(tokens.values()) - may_be_text
        self.pattern = any_of(self.texts)

    def found(self, value: Any) -> str | None:
        """The first control token's text in a text, or in the texts of chat messages."""
        if isinstance(value, str):
            match = self.pattern.search(value)
            return match[0] if match else None
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
        return next((text for item in inner if (text := self.found(item)) is not None), None)

    def mark(self, value: Any) -> Any:
        """The same text or chat messages, with stand-ins for the texts of control tokens.

        Raises:
            ValueError: it holds the characters that stand-ins are made of.
        """
        if isinstance(value, dict):
            return {key: self.mark(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.mark(item) for item in value]
        if not isinstance(value, str):
            return value
        if TEXT in value or WRITTEN in value:
            raise ValueError("the text holds U+10FFFC or U+10FFFD, which are kept for marking it: take them out.")
        return self.pattern.sub(lambda match: f"{TEXT}{self.number[match[0]]}{TEXT}", value)

    def unmark(self, marked: str) -> str:
        """The text that `mark` was given."""
        return re.sub(f"{TEXT}([0-9]+){TEXT}", lambda match: self.texts[int(match[1])], marked)

    def encode(self, marked: str) -> list[int]:
        """Tokens of a marked text, without those that a tokenizer adds around one.

        The control tokens among them are those that stand in `marked` itself.

        Raises:
            ValueError: the tokenizer makes control tokens of ordinary text, or overlooks one.
        """
        written = [self.ids[text] for text in self.pattern.findall(marked)]
        expected = [token for token in written if token in self.watched]
        if TEXT not in marked:
            tokens = self.tokenizer(marked, add_special_tokens=False, split_special_tokens=False).input_ids
            if self._watched(tokens) == expected:  # normalising can make a control token's text of another
                return tokens
        tokens = self._renamed.encode(self._with_names(marked), add_special_tokens=False).ids
        self._check(self._watched(tokens), expected)
        return tokens

    def _check(self, found: list[int], expected: list[int]) -> None:
        if found == expected:
            return
        made = Counter(found) - Counter(expected)
        token = next(iter(made or Counter(expected) - Counter(found) or expected))
        name = self.tokenizer.convert_ids_to_tokens(token)
        raise ValueError(
            f"the tokenizer makes the control token {name!r} of ordinary text: take what it does not know, or what "
            "spells it, out of the data."
            if made
            else f"the tokenizer does not find the control token {name!r} that the chat template writes: they do not "
            "belong together."
        )

    def _watched(self, tokens: list[int]) -> list[int]:
        return [token for token in tokens if token in self.watched]

    def _with_names(self, marked: str) -> str:
        """The control tokens that stand in a marked text by their new names, the others as text."""
        return self.unmark(self.pattern.sub(lambda match: self._name(match[0]), marked))

    def _name(self, text: str) -> str:
        return f"{WRITTEN}{self.number[text]}{WRITTEN}"

    @cached_property
    def _renamed(self) -> Tokenizer:
        """A copy of the tokenizer in which control tokens have names that no text spells.

        All else stays as it is: the whole text is still encoded at once, so that white space and
        merges beside a control token are what they would be.
        """
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ValueError(
                "the text of a control token stands in the data, and only fast tokenizers (tokenizer.json) can encode "
                "it as text: take it out, or use a fast tokenizer."
            )
        layout = json.loads(backend.to_str())
        layout |= {"post_processor": None, "truncation": None, "padding": None}
        for added in layout["added_tokens"]:
            added["content"] = self._renaming(added["content"])
        model = layout["model"]
        if isinstance(model["vocab"], dict):
            model["vocab"] = {self._renaming(text): token for text, token in model["vocab"].items()}
        else:  # Unigram: pairs of a piece and its score
            model["vocab"] = [[self._renaming(piece), score] for piece, score in model["vocab"]]
        if isinstance(model.get("unk_token"), str):
            model["unk_token"] = self._renaming(model["unk_token"])
        if "merges" in model:
            model["merges"] = [merge for merge in model["merges"] if not self._makes_one(merge)]
        copy = Tokenizer.from_str(json.dumps(layout))
        copy.encode_special_tokens = False
        lost = [text for text, token in self.ids.items() if copy.token_to_id(self._name(text)) != token]
        if lost:
            raise ValueError(f"the tokenizer cannot encode the text of its control token {lost[0]!r}: take it out.")
        return copy

    def _renaming(self, text: str) -> str:
        return self._name(text) if text in self.number else text

    def _makes_one(self, merge: str | list[str]) -> bool:
        """A merge of BPE that a control token's text is made by, or goes into."""
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        return bool({left, right, left + right} & self.ids.keys())


def added_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Text and id of the tokens that a tokenizer looks for before all others."""
    return {token.content: number for number, token in tokenizer.added_tokens_decoder.items()}


def text_of(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """What spells a token."""
    added = tokenizer.added_tokens_decoder.get(token)
    return added.content if added else cast(str, tokenizer.decode([token], skip_special_tokens=False))


def any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Any of the texts, the longest first, as tokenizers look for them."""
    return re.compile("|".join(map(re.escape, sorted(filter(None, texts), key=len, reverse=True))) or "(?!)")
