"""Text of models as HTML: whatever it is, it is shown and not acted upon."""

from __future__ import annotations

import html
import json
import unicodedata
from typing import Any

LONGEST = 4000  # characters of a text on the page
TURN = ("role", "content")


def escaped(text: str) -> str:
    """Text for the page, in elements and in attributes.

    Control characters, halves of surrogates, and those that turn the direction of writing are
    spelled out: U+202E would let the rest of the page read backwards.
    """
    return html.escape(visible(text))


def visible(text: str) -> str:
    """The text with its hidden characters spelled out."""
    return "".join(map(_spelled, text))


def _spelled(c: str) -> str:
    if c in "\n\t" or (c.isascii() and c.isprintable()):
        return c
    return (
        f"\N{MATHEMATICAL LEFT ANGLE BRACKET}U+{ord(c):04X}\N{MATHEMATICAL RIGHT ANGLE BRACKET}" if _is_hidden(c) else c
    )


def _is_hidden(c: str) -> bool:
    return unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp") and c != "\N{ZERO WIDTH JOINER}"


def shown(text: str) -> str:
    """A text to read, its beginning where it is long."""
    if len(text) <= LONGEST:
        return escaped(text)
    return f'{escaped(text[:LONGEST])}<span class="more"> … and {len(text) - LONGEST:,} more characters</span>'


def prompt_text(prompt: Any) -> str:
    """A prompt, or the turns of a chat, as text."""
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list) and all(isinstance(turn, dict) for turn in prompt):
        return "\n\n".join(": ".join(str(turn.get(part, "")) for part in TURN) for turn in prompt)
    return json.dumps(prompt)
