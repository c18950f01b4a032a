"""Signals that end a run: Ctrl-C, a cluster's SIGTERM, a closed terminal's SIGHUP.

All of them end it as Ctrl-C does, with its weights saved. They wait while an update is made or a
checkpoint is written: half an update is in no state that training ever was in.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def end_like_ctrl_c() -> None:
    """Let every signal that ends a run raise KeyboardInterrupt.

    One that is ignored stays so: nohup ignores SIGHUP, so that a run outlives its terminal.
    """
    for number in _heeded():
        signal.signal(number, signal.default_int_handler)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Hold signals back until the block has ended; a second one interrupts at once."""
    if threading.current_thread() is not threading.main_thread():  # Python runs no handler in others
        yield
        return
    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if noted:
            raise KeyboardInterrupt
        noted.append(number)

    before = {number: signal.signal(number, note) for number in _heeded()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if noted:
        signal.raise_signal(noted[0])  # to whoever would have had it


def _heeded() -> list[signal.Signals]:
    """The signals that are not ignored, and whose handler Python can put back."""
    return [n for n in STOPPING if signal.getsignal(n) not in (signal.SIG_IGN, None)]
