"""Options that are refused: out of range, at odds with each other, or without any effect.

An option that does nothing is refused and not passed over, because who typed it believes that it
does something. A message has the option as it is typed, and its value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import Field, fields, is_dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch

from gft_kernels import linear_policy_loss

from ..rewards.pool import runs_in_workers
from .parts import RewardLimits

if TYPE_CHECKING:
    from .config import TrainConfig

COUNTS = (
    "steps",
    "warmup",
    "save_every",
    "keep",
    "eval_every",
    "eval_prompts",
    "eval_answers",
    "experts",
    "teachers",
    "own",
    "samples",
)
LENGTHS = ("max_prompt_tokens", "max_given_tokens", "max_new_tokens")
SIZES = (
    *LENGTHS,
    "rollout_steps",
    "passes",
    "prompts_per_step",
    "micro_batch",
    "batch",
    "bad_steps",
    "eval_samples",
    "prompts",
    "lora",
    "lora_alpha",
)

POSITIVE = ("lr", "adam_epsilon", "temperature", "importance_cap")
NOT_NEGATIVE = ("kl", "clip_low", "clip_high", "weight_decay", "min_lr")
SHARES = ("tau", "max_bad_fraction", "max_failed_rewards")
BELOW_1 = ("sparse", "adam_beta1", "adam_beta2")


class OptionError(Exception):
    """An option that is refused.

    It is no ValueError: the parser of the command line would put one into a box, without the name
    of the option.
    """


# field: (what it takes, in words). A NaN fails every comparison.
RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    **dict.fromkeys(COUNTS, (lambda n: n >= 0, "at least 0")),
    **dict.fromkeys(SIZES, (lambda n: n >= 1, "at least 1")),
    **dict.fromkeys(POSITIVE, (lambda x: 0 < x < math.inf, "positive and finite")),
    **dict.fromkeys(NOT_NEGATIVE, (lambda x: 0 <= x < math.inf, "finite, and at least 0")),
    **dict.fromkeys(SHARES, (lambda x: 0 <= x <= 1, "from 0 to 1")),
    **dict.fromkeys(BELOW_1, (lambda x: 0 <= x < 1, "at least 0 and below 1")),
    "vllm_memory": (lambda x: 0 < x < 1, "above 0 and below 1"),
    "max_grad_norm": (lambda x: x > 0, "positive; inf clips nothing"),
    "reward_workers": (lambda n: 1 <= n <= 1024, "from 1 to 1024"),
    "reward_seconds": (lambda x: 0 < x <= 86400, "positive, and at most a day (86400)"),
    "reward_memory": (lambda n: 1 <= n <= 2**20, "from 1 to 2**20 (MiB)"),
    "seed": (lambda n: 0 <= n < 2**63, "at least 0 and below 2**63"),
}


def check_ranges(config: Any) -> None:
    """Refuse numbers that are out of range.

    Raises:
        OptionError: there is one.
    """
    for field, value in numbers(config):
        inside, words = RANGES[field.name]
        if "int" in _types(field) and not isinstance(value, int):
            raise OptionError(f"{option(field.name)} is {value}; it must be a whole number.")
        if not inside(value):
            raise OptionError(f"{option(field.name)} is {value}; it must be {words}.")


def numbers(config: Any) -> Iterator[tuple[Field, Any]]:
    """Every numeric field of a configuration and of those inside it, with its value unless None."""
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            yield from numbers(value)
        elif _types(field) & {"int", "float"} and value is not None:
            yield field, value


def _types(field: Field) -> set[str]:
    """The types of a field, as it was written: "int | None"."""
    return set(str(field.type).split(" | "))


def option(path: str) -> str:
    """A field as the command line has it: "group.count_flat" is --count-flat."""
    return "--" + path.rpartition(".")[2].replace("_", "-")


def check_effects(config: TrainConfig, defaults: TrainConfig) -> None:
    """Refuse options that the others leave without effect.

    An option counts as given if it differs from `defaults`. Limits of length are not looked at: one
    that nothing reaches is no mistake.

    Raises:
        OptionError: there is one.
    """
    check_suffix(config)
    if (config.model is None) != (config.data is None):
        raise OptionError("give --model and --data together, or neither for the embedded task.")
    if config.eval_data is not None and config.held_out_prompts() == 0:
        raise OptionError(f"--eval-data is {config.eval_data} and --eval-prompts is 0: leave one of them out.")
    name, rewarded = config.objective or "gft", config.asks_for_rewards()
    ratio = config.has_ratio() and config.reuse.updates > 1
    own = config.composition()[2]
    unscored = not rewarded and config.held_out_prompts() == 0
    idle: dict[str, tuple[bool, str]] = {}  # field: (has no effect, why)
    if not config.is_comparison():
        idle = {
            "tau": (name != "gft", f"the objective {name} has no tau"),
            "group.rectify": (name != "gft" or own == 0, "of own responses and given ones, there is one kind only"),
            "sampling.long_given": (sum(config.composition()[:2]) == 0, "no response is given"),
            "group.advantage": (name in ("sft", "dft"), f"the objective {name} has no advantages"),
            "reward": (
                unscored,
                f"the objective {name} asks for no rewards, and nothing is evaluated (--eval-prompts is 0)",
            ),
        }
        idle["max_failed_rewards"] = idle["reward"]
        idle |= {f"limits.{limit}": idle["reward"] for limit in vars(config.limits)}
        if not unscored:
            check_limits(config.limits, config.reward_name())
        for field in ("group.scale", "group.singleton", "group.count_flat"):
            idle[field] = (not rewarded, "every response has the advantage 1")
        if rewarded and config.reuse.kl:
            idle["group.count_flat"] = (True, "with --kl flat groups are trained on, and count")
        for field in ("sampling.temperature", "sampling.truncated", "sampling.sampler", "reuse.importance_cap"):
            idle[field] = (own == 0, "no response is sampled for training (--own is 0)")
        for field in ("reuse.clip_low", "reuse.clip_high"):
            idle[field] = (
                not ratio,
                f"with one update a batch of rollouts the ratio of {name} is 1"
                if config.has_ratio()
                else f"the objective {name} has no ratio",
            )
    idle["sampling.vllm_memory"] = (config.sampling.sampler != "vllm", "it is of --sampler vllm")
    idle["reference"] = (config.reuse.kl is None, "no KL is asked for (--kl)")
    idle |= _idle_in_updates(config)
    for field in ("evaluate.eval_every", "evaluate.eval_samples", "evaluate.eval_answers"):
        idle[field] = (config.held_out_prompts() == 0, "nothing is held out: give --eval-prompts or --eval-data")
    for field, (has_no_effect, why) in idle.items():
        value = attrgetter(field)(config)
        if has_no_effect and value != attrgetter(field)(defaults):
            raise OptionError(f"{option(field)} is {value}, and would do nothing: {why}.")


def _idle_in_updates(config: TrainConfig) -> dict[str, tuple[bool, str]]:
    """The same of the optimiser's options, and of the model's."""
    optim, decays = config.optim, config.optim.schedule != "constant"
    if optim.min_lr > optim.lr:
        raise OptionError(
            f"--min-lr is {optim.min_lr}, above --lr, which is {optim.lr}: the rate falls, it never rises."
        )
    in_warmup = f"the run ends in the warm-up (--warmup is {optim.warmup}, --steps is {config.steps})"
    idle = {
        "optim.min_lr": (not decays, "the rate is constant (--schedule)"),
        "optim.schedule": (decays and optim.warmup >= config.steps, in_warmup),
    }
    for name in ("lora_alpha", "lora_targets"):
        idle[f"network.{name}"] = (config.network.lora is None, "it needs the rank that --lora gives")
    if config.is_comparison():
        whole = "the comparison trains its model as it is: give an --objective"
        idle |= {f"network.{field.name}": (True, whole) for field in fields(config.network)}
        others = ("reference", *(f"reuse.{field.name}" for field in fields(config.reuse)))
        idle |= dict.fromkeys(others, (True, "the comparison has steps of its own: give an --objective"))
    return idle


def check_suffix(config: Any) -> None:
    """Refuse a --prompt-suffix that says nothing, or that no data file is there for.

    Raises:
        OptionError: there is one.
    """
    suffix = config.prompt_suffix
    if suffix is not None and not suffix.strip():
        raise OptionError(f"--prompt-suffix is {suffix!r}, and would do nothing: leave it out.")
    if suffix is not None and config.data is None:
        raise OptionError(
            f"--prompt-suffix is {suffix!r}, and would do nothing: without --data, the embedded task has its own "
            "prompts."
        )


def check_limits(limits: RewardLimits, reward: str) -> None:
    """Refuse limits of a reward that is called in this process.

    Raises:
        OptionError: there is one that is not the default, or no such reward.
    """
    try:
        in_workers = runs_in_workers(reward)
    except ValueError as error:
        raise OptionError(f"--reward {reward}: {error}") from error
    for name, value in vars(limits).items():
        if value != getattr(RewardLimits(), name) and not in_workers:
            raise OptionError(f"{option(name)} is {value}, and would do nothing: --reward {reward} runs in no worker.")


def check_device(name: str | None) -> None:
    """Refuse a device that this machine lacks.

    Raises:
        OptionError: no number can be put there and read back.
    """
    if name is None:
        return
    try:
        torch.device(name)
    except RuntimeError as error:
        raise OptionError(f"--device is {name!r}, which torch does not know: give cuda or cpu.") from error
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        reason = (str(error).splitlines() or ["it cannot be used"])[0]
        raise OptionError(f"--device is {name!r}, which this machine does not have: {reason}") from error


def check_engine(config: TrainConfig) -> None:
    """Refuse an engine that does not run on the device, by a loss of one token.

    Raises:
        OptionError: it does not.
    """
    if config.backend == "auto":
        return
    device = config.device or ("cuda" if config.model is not None and torch.cuda.is_available() else "cpu")
    hidden, weight = (torch.zeros(16, 16, device=device, requires_grad=True) for _ in range(2))
    targets, advantages = torch.zeros(16, dtype=torch.long, device=device), torch.ones(16, device=device)
    try:
        linear_policy_loss(
            hidden,
            weight,
            targets,
            advantages,
            objective=config.objective_function(sequence_ids=torch.zeros_like(targets)),
            ref_logprobs=torch.zeros_like(advantages),
            backend=config.head_backend(),
        )
    except (RuntimeError, ValueError, ImportError) as error:
        raise OptionError(f"--backend is {config.backend!r}, which does not run on {device}: {error}") from error
