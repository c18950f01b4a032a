"""gft sample: a teacher's responses, as groups that gft train reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

from ..data.files import Example, load_examples
from ..model.policy import Policy, load_policy
from ..processes.distributed import check_one_process
from ..report import plain_console
from ..reward_options import reward_pool
from ..rewards.pool import RewardPool
from ..runs.record import data_hash
from ..sampling.samplers import check_sampler
from ..settings.options import OptionError, check_device
from ..stop import Stopped
from ..teacher.growing_file import GrowingFile, growing_file
from ..teacher.sample import SampleConfig, sample_groups
from ..usable import position_limit


def run_sample(config: SampleConfig) -> None:
    """Sample by `config`.

    What can be refused without a model is refused first.
    """
    check_one_process("sample")
    check_device(config.device)
    check_sampler(config.sampler, config.device, config.dtype)
    name = config.reward_name()
    with nullcontext() if name is None else reward_pool(name, config.limits) as rewards:
        examples = load_examples(
            config.data,
            limit=config.prompts,
            max_bad_fraction=config.max_bad_fraction,
            prompt_suffix=config.prompt_suffix,
        )
        _check_solved(examples)
        made_of = config.made_of() | {"data": data_hash(examples)}
        kept = {"resume": config.resume, "overwrite": config.overwrite}
        policy = load_policy(config.model, device=config.device, dtype=config.dtype, temperature=config.temperature)
        _check_positions(policy, config)
        # Nothing more can be refused: --overwrite empties the file.
        with growing_file(config.out, made_of, config.rows_at_once(), len(examples), **kept) as file:
            try:
                _sample(policy, examples, config, rewards, file)
            except Stopped as stop:
                stop.resumable = True
                raise


def _sample(
    policy: Policy, examples: Sequence[Example], config: SampleConfig, rewards: RewardPool | None, file: GrowingFile
) -> None:
    """Sample what the file lacks, and tell how far it is and what became of the responses."""
    say = partial(plain_console().print, highlight=False, soft_wrap=True)
    begun, count = file.done, len(examples)
    if begun:
        say(f"goes on after row {begun} of {count}")
    total: Counter[str] = Counter()
    found: list[float] = []
    said = begun
    for told in sample_groups(policy, examples, config, rewards, file):
        total.update(told.counts)
        found += told.rewards
        if file.done - said >= count / 10 and file.done < count:
            say(f"{file.done}/{count} rows")
            said = file.done
    say(f"{config.out}: {count} rows, {count - begun} of them new, with {total['responses']} responses")
    if found:
        say(f"mean reward of the new responses: {sum(found) / len(found):.3f}")
    if total["truncated"]:
        what = "kept" if config.keep_truncated else "dropped"
        say(f"{total['truncated']} responses were cut at {config.max_new_tokens} tokens and {what}")
    if total["unscored"]:
        reason = rewards.first_error if rewards is not None else ""
        say(f"{total['unscored']} responses could not be scored and have no reward; the first reason: {reason}")
    if total["unanswered"]:
        say(f"{total['unanswered']} rows have no responses: the prompt is empty, too long, or refused by the template")


def _check_solved(examples: Sequence[Example]) -> None:
    """Refuse rows without a solution: nothing could score their responses, here or in training."""
    unsolved = [e.origin for e in examples if not e.solution.strip()]
    if unsolved:
        raise ValueError(
            f"{len(unsolved)} of {len(examples)} rows have no solution to score responses with, the first: "
            f"{unsolved[0]}. Leave them out."
        )


def _check_positions(policy: Policy, config: SampleConfig) -> None:
    """Refuse responses that no prompt leaves room for."""
    limit = position_limit(policy)
    if limit is not None and config.max_new_tokens >= limit:
        raise OptionError(
            f"--max-new-tokens is {config.max_new_tokens}, and the model has {limit} positions for a prompt and its "
            "response."
        )
