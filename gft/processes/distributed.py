"""The processes of one run: who they are, what they agree on, and how they end together.

torchrun starts them, and `joined` connects them. Here is what the loop needs of each other: values
of all ranks (`gather`), errors that all ranks raise where one of them has one (`agreed`,
`on_first`), and a stop that all take at the same place (`check_all`). In one process each of these
is what its name says of a single rank, without any exchange. parallel.py has the model.

No rank may leave alone between two exchanges: the others would wait for it. So signals are only
noted (stop.py), and an error that comes outside of `agreed` ends the others by the connection that
closes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from safetensors import SafetensorError

from .. import stop
from ..settings.config import TrainConfig
from ..settings.options import OptionError
from ..stop import Stopped

Item = TypeVar("Item")
Result = TypeVar("Result")
Number = TypeVar("Number", int, float)

# Ranks wait for the slowest one's samples and rewards, which may be long. One that has ended is
# noticed at once, by its closed connections.
PATIENCE = timedelta(minutes=30)
REUNION = timedelta(seconds=10)  # for the others to come to the same error, once one rank has it
SEED_STEP = 1_000_003  # between the seeds of two ranks: seeds of runs are seldom so far apart
UNWRITTEN = (OSError, SafetensorError)  # both are a full disk

_store: dist.Store | None = None  # outlives broken connections; None in one process
# Held until the process ends. A frame of an error may hold DDP, which would be the last to let go
# of the group, with the interpreter locked, while a thread of gloo waits for that lock: a deadlock.
_group: dist.ProcessGroup | None = None


class ElsewhereError(RuntimeError):
    """An error of another rank, which tells of it."""


class ElsewhereOSError(OSError, ElsewhereError):
    """An OSError of another rank: a save that failed, say, which is tried again."""


def rank() -> int:
    """The place of this process among those of the run."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return rank() == 0


def started() -> int:
    """Processes that were started, whether they are connected yet or not."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_count() -> int:
    """Processes of the run on this machine, which share its cores."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if dist.is_initialized() else 1


def named_rank() -> str:
    """ "rank 1: ", before what a rank says of itself; "" in one process."""
    return f"rank {os.environ.get('RANK', '0')}: " if started() > 1 else ""


def check_processes(config: TrainConfig) -> None:
    """Refuse what the number of processes leaves without effect, or what only one can do.

    Raises:
        OptionError: there is such an option.
    """
    if started() == 1 and config.parallel is not None and not config.resume:
        raise OptionError(
            f"--parallel is {config.parallel}, and would do nothing in one process: start several, by torchrun."
        )
    if config.parallel == "fsdp" and config.network.lora is not None:
        raise OptionError(
            f"--lora is {config.network.lora} and --parallel is fsdp, which has no folder of the factors: give "
            "--parallel ddp, where factors alone have gradients and moments."
        )
    if started() > 1 and config.is_comparison():
        raise OptionError(f"the comparison of methods runs in one process, and there are {started()}.")


def check_one_process(command: str) -> None:
    """Refuse a command whose processes would all do the whole work.

    Raises:
        OptionError: several were started.
    """
    if started() > 1:
        raise OptionError(f"gft {command} runs in one process, and there are {started()}: start it without torchrun.")


@contextmanager
def joined(device: str | None) -> Iterator[None]:
    """Connect the processes that torchrun started, and part from them at the end, whatever it is.

    Rank 0 alone prints, and of an error only the rank that has it first.

    Raises:
        OptionError: there are fewer GPUs than processes, or one is named for all of them.
    """
    global _store, _group
    if started() == 1:
        yield
        return
    backend = _backend(device)
    store, own_rank, count = next(dist.rendezvous("env://", timeout=PATIENCE))
    # Under --max-restarts torchrun's store still has the addresses of those that died.
    _store = dist.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    dist.init_process_group(backend, store=_store, rank=own_rank, world_size=count, timeout=PATIENCE)
    _group = dist.group.WORLD
    try:
        stop.only_note()
        with _silent_unless(own_rank == 0):
            yield
            gather(None)  # the others' ends are this rank's too
    except BaseException as error:
        if not _tells(error):
            raise SystemExit(error.exit_code if isinstance(error, Stopped) else 1) from error
        raise
    finally:
        dist.destroy_process_group()  # which wakes those that wait for this rank
        # Rank 0 may host the store, in which the others look up who tells.
        all_come("the way out", waits=own_rank == 0)
        _store = None


def _backend(device: str | None) -> str:
    """How tensors travel: NCCL between GPUs, gloo for what lies in main memory."""
    if (device is not None and not device.startswith("cuda")) or not torch.cuda.is_available():
        return "gloo"
    if device not in (None, "cuda"):
        raise OptionError(f"--device is {device}, and there are {started()} processes: give cuda, each takes its own.")
    own, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if own >= count:
        raise OptionError(f"process {own + 1} of this machine finds {count} GPUs: start one process for each.")
    torch.cuda.set_device(own)
    return "cpu:gloo,cuda:nccl"


@contextmanager
def _silent_unless(speaks: bool) -> Iterator[None]:
    if speaks:
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def _tells(error: BaseException) -> bool:
    """Whether this rank says why the run ends: the first one whose own error it is."""
    if isinstance(error, ElsewhereError) or _store is None:
        return False
    try:
        return _store.add("ended", 1) == 1
    except RuntimeError:  # whoever hosts it has ended, and has told why
        return False


def gather(value: Item) -> list[Item]:
    """The value of every rank, in their order."""
    if world_size() == 1:
        return [value]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, value)
    return found


@contextmanager
def agreed() -> Iterator[None]:
    """An error of one rank within the block is raised on every rank at its end.

    Raises:
        ElsewhereError: another rank failed; an ElsewhereOSError if it could not write.
    """
    error = None
    try:
        yield
    except Exception as own:
        error = own
    texts = gather(None if error is None else (isinstance(error, UNWRITTEN), str(error) or type(error).__name__))
    for place, found in enumerate(texts):
        if found is not None:
            if place == rank():
                assert error is not None
                raise error
            kind = ElsewhereOSError if found[0] else ElsewhereError
            raise kind(f"rank {place}: {found[1]}") from error


def on_first(work: Callable[[], Result]) -> Result:
    """What `work` returns on rank 0, on every rank; and so what it raises."""
    result: Any = None
    with agreed():
        if is_first():
            result = work()
    return gather(result)[0]


def share(items: Sequence[Item]) -> Sequence[Item]:
    """This rank's part of what is shared out: every so-many-th one, so that parts differ by one."""
    return items[rank() :: world_size()]


def total(*numbers: Number) -> list[Number]:
    """Each number summed over the ranks."""
    return [sum(of_ranks) for of_ranks in zip(*gather(numbers), strict=True)]


def stream_seed(seed: int) -> int:
    """The seed of this rank's random stream. Rank 0 has that of the run."""
    return seed + rank() * SEED_STEP


def check_all() -> None:
    """End the run here, on every rank, if a signal reached any of them.

    Raises:
        Stopped: one did.
    """
    if world_size() == 1:
        return stop.check()
    number = max(gather(stop.noted()))
    if number:
        raise Stopped(number)


def all_come(place: str, waits: bool = True) -> bool:
    """Whether every rank comes to this place within seconds; one that does not wait is told False.

    After an error it is not known where the others are: they may wait in an exchange for this one.
    """
    if _store is None:
        return True
    keys = [f"{place}/{r}" for r in range(started())]
    try:
        _store.set(keys[int(os.environ["RANK"])], "")
        if waits:
            _store.wait(keys, REUNION)
        return waits
    except RuntimeError:
        return False
