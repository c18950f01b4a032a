"""The backends by name, and the choice `auto` makes. A new backend is one file and one line here."""

from __future__ import annotations

import torch

from . import chunked, reference
from .plan import Backend

BACKENDS: dict[str, Backend] = {b.name: b for b in (reference.BACKEND, chunked.BACKEND)}


def resolve_backend(name: str, device: torch.device) -> Backend:
    """The backend called `name`; "auto" is the fastest one for `device`.

    Raises:
        ValueError: no backend has that name.
    """
    if name == "auto":
        return BACKENDS["chunked"]
    if name not in BACKENDS:
        raise ValueError(f"backend = {name!r} is unknown: choose 'auto' or one of {', '.join(map(repr, BACKENDS))} (device {device}).")
    return BACKENDS[name]
