"""When a run is saved: as often as asked, at its end, and where something ends it before that."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .checkpoint import MODEL, Checkpoints, save_model
from .config import TrainConfig
from .distributed import all_come, on_first
from .metrics import MetricsLog
from .state import RunState
from .stop import Stopped


@dataclass
class Keeper:
    """Saves a run's state; `newest` is the checkpoint that stands, and `saved` its step."""

    checkpoints: Checkpoints
    config: TrainConfig
    log: MetricsLog
    say: Callable[[str], None]
    newest: Path | None = None
    saved: int | None = None
    overdue: bool = False
    trouble: str = ""

    def save_if_due(self, state: RunState) -> None:
        """Save after the steps that --save-every names, and make the model of the last step.

        A save that fails on the way is told, and tried again after every step. The disk may have
        room again, and what was saved before is still there.

        Raises:
            OSError: that of the last step cannot be written.
        """
        if state.step == self.config.steps:
            return self._finish(state)
        self.overdue |= state.step in self.config.saved_steps() and state.step != self.saved
        if not self.overdue:
            return
        try:
            self._save(state)
        except OSError as error:
            if str(error) != self.trouble:
                self.say(f"no checkpoint of step {state.step}, it is tried again after the next: {error}")
            self.trouble = str(error)

    @contextmanager
    def rescuing(self, state: RunState) -> Iterator[None]:
        """Save the last whole update where the block ends in an error or is stopped.

        A second signal is not held up by it, and the newest checkpoint stands. So it does where an
        error is one rank's alone: a save is one of all of them.
        """
        try:
            yield
        except BaseException as error:
            if not (isinstance(error, Stopped) and error.at_once):
                self._rescue(state)
            raise

    def _rescue(self, state: RunState) -> None:
        has_rollouts = state.in_use is not None and state.used == 0
        is_new = has_rollouts or state.step > (self.saved or 0)
        if is_new and not state.is_changing and all_come(f"the end after step {state.step}"):
            try:
                self._save(state)
            except OSError as error:
                self.say(f"no checkpoint of step {state.step}: {error}")
        where = f"step {self.saved}, {self.newest}" if self.newest else "the beginning"
        self.say(f"ended after step {state.step}; gft train --resume --out {self.config.out} goes on from {where}")

    def _finish(self, state: RunState) -> None:
        try:
            if state.step != self.saved:
                self._save(state)
        except OSError:
            # The weights alone are a third of it.
            self.say(f"the weights alone: {save_model(self.checkpoints.policy, self.config.out / MODEL)}")
            raise
        assert self.newest is not None
        newest = self.newest
        on_first(lambda: self.checkpoints.publish(newest))

    def _save(self, state: RunState) -> None:
        self.log.flush()  # first: the state says how long the file is
        self.newest = self.checkpoints.save(state)
        self.saved, self.overdue, self.trouble = state.step, False, ""
