"""A place in a list of tokens, which the readers share."""

from __future__ import annotations

from .spelling import Token, Unreadable

END = Token("nothing", "the end")


class Cursor:
    """Looks at the next token and takes it. `flips` names the spellings read the second way."""

    def __init__(self, tokens: list[Token], flips: frozenset[str]) -> None:
        self.tokens, self.flips = tokens, flips
        self.position = 0

    @property
    def next(self) -> Token:
        return self.peek(0)

    def peek(self, ahead: int) -> Token:
        place = self.position + ahead
        return self.tokens[place] if 0 <= place < len(self.tokens) else END

    def at(self, *texts: str) -> bool:
        """Whether one of these marks or commands is next."""
        return self.next.kind in ("mark", "command") and self.next.text in texts

    def take(self) -> Token:
        token = self.next
        self.position += 1
        return token

    def accept(self, *texts: str) -> bool:
        found = self.at(*texts)
        self.position += found
        return found

    def expect(self, *texts: str) -> str:
        if not self.at(*texts):
            raise Unreadable(f"{' or '.join(texts)} is missing before {self.next.text}")
        return self.take().text
