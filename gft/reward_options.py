"""The rewards that the options name, with the limits that they set."""

from __future__ import annotations

from .distributed import local_count
from .options import OptionError
from .parts import RewardLimits
from .rewards.pool import RewardPool, usable_cores


def reward_pool(name: str, limits: RewardLimits) -> RewardPool:
    """The rewards, which are asked for before data and model: their names may be misspelt.

    Processes of a run that share a machine share its cores.

    Raises:
        OptionError: one cannot be found or imported.
    """
    try:
        return RewardPool(
            name,
            workers=limits.reward_workers or max(1, usable_cores() // local_count()),
            seconds=limits.reward_seconds,
            memory_mib=limits.reward_memory,
        )
    except ValueError as error:
        raise OptionError(f"--reward {name}: {error}") from error
