"""What a chat template writes: a prompt, and the turn of the assistant that answers it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple, cast

from transformers import PreTrainedTokenizerBase

from .control_tokens import ControlTokens, added_tokens, any_of, text_of

# The chat that a template's habits are learned from.
QUESTION = ({"role": "user", "content": "question"},)
ANSWER = "xyzzy"


class Closing(NamedTuple):
    """What a template writes after an answer."""

    token: int  # the end token
    text: str  # its text; "" if the template writes none, and the answer ends in eos
    written: str  # what stands between an answer and the end of its turn, with that text


class ChatTemplate:
    """The chat template of a tokenizer.

    Args:
        tokenizer: any of transformers, with or without a template.
        ends: tokens that end a response, whatever the template says.
        name: the model's, for messages.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ends: set[int], name: str) -> None:
        self.tokenizer = tokenizer
        self.ends = ends
        self.name = name

    @cached_property
    def works(self) -> bool:
        """There is a template to learn from. Texts need none, and chats will say what is wrong."""
        try:
            return bool(self.closing)
        except ValueError:
            return False

    @cached_property
    def closing(self) -> Closing:
        """Learned from a chat of one question and one answer."""
        ends = {text_of(self.tokenizer, token): token for token in self.ends}
        ends |= {text: token for text, token in added_tokens(self.tokenizer).items() if not text.isspace()}
        answered = self._answered(QUESTION, ANSWER)
        if not self.writes_answers and any_of(ends).search(answered):
            raise ValueError(f"the chat template of {self.name} leaves out what the assistant says: give another one.")
        after = answered.rpartition(ANSWER)[2] if self.writes_answers else ""
        first = any_of(ends).search(after)
        if first is None:
            return Closing(cast(int, self.tokenizer.eos_token_id), "", after)
        return Closing(ends[first[0]], first[0], after[: first.end()])

    @cached_property
    def writes_answers(self) -> bool:
        """Some templates only write a question for a base model, which goes on with plain text."""
        return ANSWER in self._answered(QUESTION, ANSWER)

    def around_turns(self) -> set[str]:
        """Added tokens around the user's turn, and the one that opens the assistant's."""
        added = any_of(text for text in added_tokens(self.tokenizer) if not text.isspace())
        user, asked = (added.findall(self._render(QUESTION, answer_next=asks)) for asks in (False, True))
        same = next(
            (i for i, (a, b) in enumerate(zip(user, asked, strict=False)) if a != b), min(len(user), len(asked))
        )
        return {*user, *asked[same : same + 1]}

    def asked(self, messages: Sequence[dict]) -> str:
        """A prompt: it ends where the assistant begins."""
        return self._render(messages, answer_next=True)

    def turn(self, messages: Sequence[dict], text: str, control: ControlTokens) -> str:
        """What stands between a prompt and the end token of its answer, with that, marked.

        Some templates write a prompt differently once it is answered, such as those that put the
        system's message into the last turn of the user. There the turn is that after a simple
        question: the policy meets the prompt as it is before its answer.

        Args:
            messages: the prompt, marked.
            text: the response.
            control: what marks them.

        Raises:
            ValueError: the template does not write the response as it is.
        """
        marked = control.mark(text)
        if not self.writes_answers:
            return marked
        asked, answered = self.asked(messages), self._answered(messages, marked)
        if not answered.startswith(asked):
            asked, answered = self.asked(QUESTION), self._answered(QUESTION, marked)
        if not answered.startswith(asked):
            return control.mark(self._reopened(text)) + self.closing.written
        turn, end = answered.removeprefix(asked), self.closing.text
        if end:
            turn, found, _ = turn.partition(end)
            turn += found
        else:
            turn = turn.removesuffix(self.closing.written)
        if _without_space(marked) not in _without_space(turn):
            raise ValueError(
                f"the chat template of {self.name} changes the response {text[:60]!r} to "
                f"{control.unmark(turn)[:60]!r}: leave out what it takes away, or give a template that keeps it."
            )
        return turn

    def _reopened(self, text: str) -> str:
        """The rest of a response that the template begins itself, and takes the beginning away.

        Reasoning models have such: their prompts end with "<think>", and finished turns have none.
        """
        asked, answered = self.asked(QUESTION), self._answered(QUESTION, ANSWER)
        begun = asked.removeprefix(answered.partition(ANSWER)[0])
        if begun == asked:
            raise ValueError(
                f"the chat template of {self.name} writes a prompt differently once it is answered: "
                f"{answered[:80]!r} after {asked[:80]!r}: give one whose answered chat begins with the prompt."
            )
        if not text.startswith(begun):
            raise ValueError(
                f"the chat template of {self.name} ends prompts with {begun!r}, which it takes out of finished turns, "
                f"and the response does not begin with it: {text[:40]!r}. Put it in front, or give another template."
            )
        return text.removeprefix(begun)

    def _answered(self, messages: Sequence[dict], text: str) -> str:
        return self._render([*messages, {"role": "assistant", "content": text}], answer_next=False)

    def _render(self, messages: Sequence[dict], answer_next: bool) -> str:
        if self.tokenizer.chat_template is None:
            raise ValueError(f"the data has chat messages but the tokenizer of {self.name} has no chat template.")
        try:
            text = self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=answer_next)
        except ImportError:
            raise
        except Exception as error:  # a template is a program that comes with the model
            roles = ", ".join(str(message.get("role")) for message in messages)
            raise ValueError(
                f"the chat template of {self.name} refuses messages of the roles {roles}: "
                f"{' '.join(str(error).split()) or type(error).__name__}"
            ) from error
        return cast(str, text)  # it is: tokenize is False


def _without_space(text: str) -> str:
    return "".join(text.split())
