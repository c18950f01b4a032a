"""TensorBoard, trackio and wandb beside metrics.jsonl (--log-to).

Nothing of a run depends on them. One that fails is told once and left alone. The rows that each has
are noted in loggers.json, so that a run that goes on from an older checkpoint gives none twice.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from .config import TrainConfig
from .distributed import is_first
from .metrics import MetricsLog
from .options import OptionError
from .record import as_json

PROJECT = "gft"
NOTED = "loggers.json"


class Logger(Protocol):
    """Where numbers go."""

    def log(self, numbers: dict[str, float], step: int) -> None: ...

    def finish(self) -> None: ...


class TensorBoard:
    """Event files in OUT/tensorboard, the log directory to give `tensorboard`."""

    def __init__(self, config: TrainConfig, run: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(config.out / "tensorboard" / run[:6]))

    def log(self, numbers: dict[str, float], step: int) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()  # noted as given only once it is on the disk

    def finish(self) -> None:
        self.writer.close()


class Trackio:
    """The project gft, where trackio keeps its own (TRACKIO_DIR): `trackio show` shows it."""

    def __init__(self, config: TrainConfig, run: str) -> None:
        import trackio

        self.run: Any = trackio.init(PROJECT, name=_name(config, run), config=as_json(config), resume="allow")

    def log(self, numbers: dict[str, float], step: int) -> None:
        self.run.log(numbers, step=step)

    def finish(self) -> None:
        self.run.finish()


class WandB:
    """Offline unless WANDB_MODE says otherwise: `wandb sync OUT/wandb/offline-*` sends it later."""

    def __init__(self, config: TrainConfig, run: str) -> None:
        import wandb

        mode: Any = os.environ.get("WANDB_MODE", "offline")
        if mode == "online" and not wandb.login(prompt=False):  # or init() would ask for a key
            raise RuntimeError("there is no API key: `wandb login` first, or unset WANDB_MODE")
        self.run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=run,
            name=_name(config, run),
            config=as_json(config),
            dir=os.environ.get("WANDB_DIR", str(config.out)),
            mode=mode,
            resume="allow",
        )

    def log(self, numbers: dict[str, float], step: int) -> None:
        self.run.log(numbers, step=step)  # rows of one step, an update and its evaluation, become one

    def finish(self) -> None:
        self.run.finish()


LOGGERS: dict[str, Callable[[TrainConfig, str], Logger]] = {
    "tensorboard": TensorBoard,
    "trackio": Trackio,
    "wandb": WandB,
}


def check_installed(names: tuple[str, ...]) -> None:
    """Refuse loggers that are not installed, before anything is read.

    Raises:
        OptionError: one is not.
    """
    for name in names:
        found = find_spec(name)
        if found is None or found.origin is None:  # a folder of that name, which a run may have left, is none
            raise OptionError(f"--log-to {name}: it is not installed: pip install {name}.")


@dataclass
class Loggers:
    """The loggers of a run that still work, and the last row that each has been given."""

    out: Path
    run: str
    say: Callable[[str], None]
    working: dict[str, Logger] = field(default_factory=dict)
    given: dict[str, int] = field(default_factory=dict)

    def open(self, config: TrainConfig) -> None:
        """Open those of --log-to."""
        with suppress(OSError, ValueError, KeyError, TypeError):  # else nothing was given
            noted = json.loads((self.out / NOTED).read_text())
            self.given = dict(noted["rows"]) if noted["run"] == self.run else {}
        for name in config.log_to:
            with self._guarded(name):
                self.working[name] = LOGGERS[name](config, self.run)

    def give(self, row: dict) -> None:
        """Give a row of metrics.jsonl to those that do not have it."""
        place = 2 * row["step"] + any(key.startswith("eval_") for key in row)  # a step, then its evaluation
        numbers = {name: float(v) for name, v in row.items() if name != "step" and _is_finite(v)}
        for name, logger in list(self.working.items()):
            if place > self.given.get(name, -1):
                with self._guarded(name):
                    logger.log(numbers, row["step"])
                self.given[name] = place
        with suppress(OSError):  # then a run that goes on may give a row twice
            (self.out / NOTED).write_text(json.dumps({"run": self.run, "rows": self.given}))

    def close(self) -> None:
        for name, logger in list(self.working.items()):
            with self._guarded(name):
                logger.finish()

    @contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever it is, the run is worth more
            self.working.pop(name, None)
            text = " ".join(str(error).split())[:300]
            self.say(f"--log-to {name} failed and is left out from here on: {type(error).__name__}: {text}")


@contextmanager
def logging_to(config: TrainConfig, run: str, log: MetricsLog, say: Callable[[str], None]) -> Iterator[None]:
    """Within the block every row of `log` is given to the loggers of --log-to too."""
    if not config.log_to or not is_first():
        yield
        return
    loggers = Loggers(config.out, run, say)
    loggers.open(config)
    log.also = loggers.give
    try:
        yield
    finally:
        log.also = None
        loggers.close()


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _name(config: TrainConfig, run: str) -> str:
    return f"{config.out.name or 'run'}-{run[:6]}"
