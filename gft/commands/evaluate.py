"""gft eval: accuracy of a model, one table."""

from __future__ import annotations

import sys

from ..config import EvaluateConfig
from ..data.files import load_examples
from ..demo import sort_letters
from ..demo.compare import HELD_OUT_SEED
from ..evaluate import evaluate
from ..options import check_device
from ..policy import load_policy
from ..report import accuracy_table, plain_console
from ..reward_options import reward_pool
from ..usable import usable_held_out


def run_eval(config: EvaluateConfig) -> None:
    """Evaluate by `config`."""
    check_device(config.device)
    with reward_pool(config.reward_name(), config.limits) as rewards:
        if config.data is None:
            examples = sort_letters.examples(config.prompts, HELD_OUT_SEED)
        else:
            examples = load_examples(
                config.data,
                limit=config.prompts,
                max_bad_fraction=config.max_bad_fraction,
                seed=HELD_OUT_SEED,
                prompt_suffix=config.prompt_suffix,
            )
        policy = load_policy(config.model, device=config.device)
        examples = usable_held_out(policy, examples, config.max_new_tokens, config.max_bad_fraction)
        accuracy = evaluate(
            policy,
            examples,
            rewards,
            samples=config.samples,
            max_new_tokens=config.max_new_tokens,
            batch=config.batch,
            temperature=config.temperature,
            seed=config.seed,
        )
    plain_console().print(
        accuracy_table([(str(config.model), accuracy._asdict())], f"{len(examples)} prompts", config.samples)
    )
    if accuracy.errors:
        print(f"{accuracy.errors} responses could not be scored and are not in the means", file=sys.stderr)
