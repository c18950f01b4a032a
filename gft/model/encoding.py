"""Prompts and responses as tokens, and the seam between them.

    prompt + response = the whole text, or the whole chat, to the end token of the answer

The prompt's tokens are those of the prompt alone, because the policy samples after them and knows
no response yet. The response's tokens are what follows in the whole, with the end token once. A
tokenizer may merge across the seam: "2+2=" and "4" are "=4" in the whole. Then the response is
encoded as it is behind any other token. The policy could not have sampled "=4" after "=".
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import cast

from transformers import PreTrainedTokenizerBase

from .chat_template import QUESTION, ChatTemplate
from .control_tokens import ControlTokens, added_tokens, text_of

Prompt = str | tuple[dict, ...]

ANCHORS = ("\n", "a", ".", "0", " ")  # texts that a response can stand behind


class Encoding:
    """How a policy's tokenizer encodes prompts and responses.

    Args:
        tokenizer: any of transformers.
        configured: end tokens that the model's generation_config lists.
        name: the model's, for messages.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, configured: Iterable[int], name: str | None = None) -> None:
        self.tokenizer = tokenizer
        self.eos = cast(int, tokenizer.eos_token_id)
        self.name = name or "this model"
        self.template = ChatTemplate(tokenizer, {*configured, self.eos}, self.name)

    @cached_property
    def end_tokens(self) -> set[int]:
        """Tokens that end a response: the turn's end, the text's, and what the model lists."""
        return self.template.ends | ({self.template.closing.token} if self.template.works else set())

    def end_token(self, prompt: Prompt | None = None) -> int:
        """The token at the end of a given response: the policy learns to stop with it.

        After a text it is the tokenizer's. After a chat it is the one that the template writes
        behind an answer, which need not be the same. Without a prompt: a chat's, if there is a
        template.
        """
        return self.eos if self._is_text(prompt) else self.template.closing.token

    def prompt(self, prompt: Prompt) -> list[int]:
        """Tokens of a text, or of a chat up to where the assistant begins to answer.

        Raises:
            ValueError: it cannot be encoded, or the chat template refuses it.
        """
        marked = self.control.mark(prompt)
        if not isinstance(prompt, str):
            return self.control.encode(self.template.asked(marked))  # the template writes a begin token itself
        tokens = self.control.encode(marked)
        return [*self._begin(prompt), *tokens] if tokens else []

    def response(self, text: str, prompt: Prompt | None = None) -> list[int]:
        """Tokens of a finished response to a prompt, with the end token once.

        Without the prompt it is encoded as it is behind any other one.

        Raises:
            ValueError: it cannot be encoded, or the chat template does not write it as it is.
        """
        text = self.response_text(text)
        if self._is_text(prompt):
            before, after, ended = self.control.mark(prompt or ""), self.control.mark(text), False
        else:
            messages = self.control.mark(prompt or QUESTION)
            before, after = self.template.asked(messages), self.template.turn(messages, text, self.control)
            ended = bool(self.template.closing.text)
        tokens = self._behind(before, after) + ([] if ended else [self.end_token(prompt)])
        if [token in self.end_tokens for token in tokens] != [False] * (len(tokens) - 1) + [True]:
            raise ValueError(
                "a response must hold an end token once, as its last; the tokens of this one end with "
                f"{self.tokenizer.convert_ids_to_tokens(tokens[-20:])}."
            )
        return tokens

    def response_text(self, text: str) -> str:
        """The text of a given response without the end tokens that many files spell out behind it.

        It is what rewards read: the text of the file, not one that was encoded and decoded.
        """
        ends = sorted(filter(None, (text_of(self.tokenizer, token) for token in self.end_tokens)), key=len)
        while spelled := [end for end in ends if text.rstrip().endswith(end)]:
            text = text.rstrip().removesuffix(spelled[-1])
        return text

    def decode(self, tokens: list[int]) -> str:
        """The text of a sample, which rewards read. Its end token is no part of it."""
        tokens = tokens[:-1] if tokens and tokens[-1] in self.end_tokens else tokens
        # Cleaning up would turn "a ." into "a.", and a given response is not cleaned up either.
        text = self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return cast(str, text)

    @cached_property
    def control(self) -> ControlTokens:
        """Tokens that no text of the data may become.

        They are the tokenizer's special tokens, the end tokens, and what the chat template writes
        around a turn. Other added tokens, such as <think>, are a response's own. A single character
        is text, whatever role a tokenizer has given it.
        """
        added, known = added_tokens(self.tokenizer), self.tokenizer.added_tokens_decoder
        special = {token for token in known if known[token].special}
        special |= {*self.tokenizer.all_special_ids, *self.end_tokens}
        special |= {added[text] for text in self.template.around_turns()} if self.template.works else set()
        unknown = {self.tokenizer.unk_token_id} - self.end_tokens
        return ControlTokens(
            self.tokenizer,
            {text: token for text, token in added.items() if token in special and len(text) > 1},
            frozenset(token for token in unknown if token is not None),
        )

    def _is_text(self, prompt: Prompt | None) -> bool:
        return isinstance(prompt, str) or (prompt is None and self.tokenizer.chat_template is None)

    def _begin(self, text: str) -> list[int]:
        """What the tokenizer puts in front of a text; what it puts behind is no prompt's."""
        text = self.control.pattern.sub("", text) or "a"
        bare, whole = (self.tokenizer(text, add_special_tokens=add).input_ids for add in (False, True))
        for start in range(len(whole) - len(bare) + 1):
            if whole[start : start + len(bare)] == bare:
                return whole[:start]
        raise ValueError(f"the tokenizer of {self.name} changes a text when it adds its special tokens: use another.")

    def _behind(self, before: str, after: str) -> list[int]:
        """Tokens of `after` where it stands behind `before`; behind anything if that is empty."""
        for front in (before, *self._anchors):
            tokens, whole = self.control.encode(front), self.control.encode(front + after)
            if tokens and whole[: len(tokens)] == tokens:
                return whole[len(tokens) :]
        raise ValueError(
            f"the tokenizer of {self.name} merges {self.control.unmark(after)[:40]!r} with whatever stands before it: "
            "the response has no tokens of its own."
        )

    @cached_property
    def _anchors(self) -> list[str]:
        """Those of ANCHORS that the tokenizer knows. Alone, many put a space in front of a text."""
        known = []
        for anchor in ANCHORS:
            try:
                self.control.encode(anchor)
            except Exception:  # one without an unknown token raises what it likes
                continue
            known.append(anchor)
        return known
