"""Signals that end a run: Ctrl-C, a cluster's SIGTERM and SIGUSR1, a closed terminal's SIGHUP.

Within `held` a signal is only noted, and the run ends where it asks for it (`check`): between
tokens, micro-batches and rewards. So none is taken in the middle of an update or a save: half an
update is in no state that training ever was in. A second signal leaves at once, wherever it comes.

Of several processes one may be told and the others not, so none looks by itself (`only_note`):
they ask each other between two updates (distributed.py). A second signal within seconds is the
first one's echo there: a scheduler tells all processes, and torchrun tells its own once more.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
RESUMABLE = 75  # EX_TEMPFAIL of sysexits.h: what failed will succeed if it is run again
ECHO = 5.0  # seconds

_noted: list[int] | None = None  # signals that came within `held`; None outside
_one_of_several = False
_taken_at = -ECHO


class Stopped(KeyboardInterrupt):
    """A signal asked for the end; `at_once` if it was the second one, which nothing may hold up.

    `resumable` is for whoever knows it to set: there is a run that can go on.
    """

    def __init__(self, number: int, at_once: bool = False) -> None:
        super().__init__(signal.Signals(number).name)
        self.number, self.at_once, self.resumable = number, at_once, False

    @property
    def exit_code(self) -> int:
        """75 if the run can be resumed, else 128 + the signal's number; Ctrl-C's is 130 always."""
        return RESUMABLE if self.resumable and self.number != signal.SIGINT else 128 + self.number


def heed_signals() -> None:
    """Let every signal that ends a run raise Stopped.

    One that is ignored stays so: nohup ignores SIGHUP, so that a run outlives its terminal.
    """
    for number in _heeded():
        signal.signal(number, _take)


@contextmanager
def held() -> Iterator[None]:
    """Note the first signal until `check` asks for it, or the block has ended.

    A block inside another one ends without a look at signals: the outer one has them.
    """
    global _noted, _taken_at
    if _noted is not None or threading.current_thread() is not threading.main_thread():
        yield  # Python runs no handler in other threads
        return
    noted: list[int] = []
    _noted = noted
    before = {number: signal.signal(number, _take) for number in _heeded()}
    try:
        yield
    finally:
        _noted = None
        for number, handler in before.items():
            signal.signal(number, handler)
    if noted:
        _taken_at = -ECHO  # no echo, but the signal itself
        signal.raise_signal(noted[0])  # to whoever would have had it


def check() -> None:
    """End the run here if a signal asked for it; one of several processes leaves at no such place.

    Raises:
        Stopped: one did.
    """
    if _noted and not _one_of_several and threading.current_thread() is threading.main_thread():
        raise Stopped(_noted[0])


def noted() -> int:
    """The signal that waits for `check`; 0 if there is none."""
    return _noted[0] if _noted else 0


def only_note() -> None:
    """This process is one of several, until it ends."""
    global _one_of_several
    _one_of_several = True


def _take(number: int, frame: FrameType | None) -> None:
    global _taken_at
    since, _taken_at = time.monotonic() - _taken_at, time.monotonic()
    if _one_of_several and since < ECHO:
        return
    if _noted is None or _noted:
        raise Stopped(number, at_once=bool(_noted))
    _noted.append(number)


def _heeded() -> list[signal.Signals]:
    """The signals that are not ignored, and whose handler Python can put back."""
    return [n for n in STOPPING if signal.getsignal(n) not in (signal.SIG_IGN, None)]
