"""gft eval: accuracy of a model, one table."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ..data.files import Example, load_examples
from ..demo import sort_letters
from ..demo.compare import HELD_OUT_SEED
from ..evaluation.divergence import check_same_tokens, kl_to_base, members_of, response_logprobs
from ..evaluation.estimates import Estimate
from ..evaluation.evaluate import Accuracy, evaluate
from ..evaluation.folder import finish, open_evaluation
from ..evaluation.held_out import SAMPLES, Answer, AnswerLog, answer_log
from ..model.policy import Policy, load_policy
from ..processes.distributed import check_one_process
from ..report import accuracy_table, estimate_table, plain_console
from ..reward_options import reward_pool
from ..settings.config import EvaluateConfig
from ..settings.options import check_device
from ..stop import Stopped
from ..usable import usable_held_out


def run_eval(config: EvaluateConfig) -> None:
    """Evaluate by `config`."""
    check_one_process("eval")
    check_device(config.device)
    with reward_pool(config.reward_name(), config.limits) as rewards:
        examples = _examples(config)
        policy = load_policy(config.model, device=config.device, temperature=config.temperature)
        base = None if config.base is None else load_policy(config.base, device="cpu", temperature=config.temperature)
        if base is not None:
            check_same_tokens(policy, base, "--base")
        examples = usable_held_out(policy, examples, config.max_new_tokens, config.max_bad_fraction)
        answers: list[Answer] = []
        with _kept(config, policy, examples) as log:
            if log is not None:
                answers += log.answers
                if log.answers:
                    print(f"goes on behind {len(answers)} answers in {config.out}", file=sys.stderr)

            def keep(fresh: Sequence[Answer]) -> None:
                answers.extend(fresh)
                if log is not None:
                    log.add(fresh)

            accuracy = evaluate(
                policy,
                examples,
                rewards,
                samples=config.samples,
                max_new_tokens=config.max_new_tokens,
                batch=config.batch,
                temperature=config.temperature,
                seed=config.seed,
                done=list(answers),
                keep=keep,
            )
            kl = {} if base is None else _kl(config, policy, base, examples, answers)
            if config.out is not None:
                finish(config.out, accuracy, kl)
    _tell(config, accuracy, kl, len(examples))


def _examples(config: EvaluateConfig) -> list[Example]:
    if config.data is None:
        return sort_letters.examples(config.prompts, HELD_OUT_SEED)
    return load_examples(
        config.data,
        limit=config.prompts,
        max_bad_fraction=config.max_bad_fraction,
        seed=HELD_OUT_SEED,
        prompt_suffix=config.prompt_suffix,
    )


@contextmanager
def _kept(config: EvaluateConfig, policy: Policy, examples: Sequence[Example]) -> Iterator[AnswerLog | None]:
    """samples.jsonl of --out, if there is one. A signal then ends what can go on."""
    if config.out is None:
        yield None
        return
    open_evaluation(config, policy, examples)
    try:
        with answer_log(config.out / SAMPLES) as log:
            yield log
    except Stopped as stop:
        stop.resumable = True
        raise


def _kl(
    config: EvaluateConfig, policy: Policy, base: Policy, examples: Sequence[Example], answers: Sequence[Answer]
) -> dict[str, Estimate]:
    """The KL to the base. The device holds one model at a time."""
    sampled = [a for a in answers if a.source == "sample"]
    members, device = members_of(policy, examples, sampled), policy.device
    own = response_logprobs(policy, members, config.batch)
    policy.model.to("cpu")  # type: ignore[arg-type]  # the annotation of transformers' own .to is at fault
    base.model.to(device)  # type: ignore[arg-type]
    base.compute = policy.compute
    theirs = response_logprobs(base, members, config.batch)
    return kl_to_base(sampled, own, theirs)


def _tell(config: EvaluateConfig, accuracy: Accuracy, kl: dict[str, Estimate], prompts: int) -> None:
    console = plain_console()
    row = (str(config.model), accuracy._asdict())
    console.print(accuracy_table([row], f"{prompts} prompts", config.samples))
    console.print(estimate_table(accuracy.numbers, kl))
    if accuracy.errors:
        print(f"{accuracy.errors} responses could not be scored and are not in the means", file=sys.stderr)
    if config.out is not None:
        console.print(f"answers: {config.out / SAMPLES}", highlight=False, soft_wrap=True)
