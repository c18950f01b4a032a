"""gft data check: what a run would make of a file, before there is a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, cast

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..config import ObjectiveName, TrainConfig
from ..data.files import Example, read_examples
from ..findings import Finding, Inspection, inspect
from ..groups import given_responses
from ..options import OptionError, check_limits, check_ranges, option
from ..parts import GroupConfig, RewardLimits, SamplingConfig
from ..policy import Policy, load_encoder
from ..report import plain_console
from ..reward_options import reward_pool

RENDERED = 3  # examples
PLACES = 3  # of a finding
LONGEST = 1200  # characters of a prompt or response that are shown
TRAINED = "black on green"


@dataclass(frozen=True)
class CheckConfig:
    """Look at a data file as a run would: lengths, bad rows, duplicates, solutions and experts that
    the reward cannot read, and three examples with the tokens that are trained on.

    The exit code is 1 if the run would refuse the data.
    """

    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """A .jsonl or .parquet file, or rg:NAME for a task of reasoning-gym, as for train."""
    model: Path | None = None
    """A local transformers folder, of which the weights are not read. None leaves out whatever needs
    its tokenizer."""
    prompts: int | None = None
    """Rows to look at, from the start of the data. None is all of them."""
    objective: ObjectiveName = "gft"
    """As for train."""
    experts: int | None = None
    """As for train."""
    teachers: int | None = None
    """As for train."""
    own: int | None = None
    """As for train."""
    advantage: Literal["group", "one"] = GroupConfig.advantage
    """As for train."""
    max_prompt_tokens: int = SamplingConfig.max_prompt_tokens
    """As for train."""
    max_given_tokens: int = SamplingConfig.max_given_tokens
    """As for train."""
    long_given: Literal["drop", "cut"] = SamplingConfig.long_given
    """As for train."""
    max_new_tokens: int = SamplingConfig.max_new_tokens
    """As for train."""
    prompt_suffix: str | None = None
    """As for train."""
    reward: str | None = None
    """As for train."""
    limits: RewardLimits = field(default_factory=RewardLimits)
    max_bad_fraction: float = TrainConfig.max_bad_fraction
    """As for train."""

    def __post_init__(self) -> None:
        check_ranges(self)
        for name in ("max_prompt_tokens", "max_given_tokens", "long_given", "max_new_tokens"):
            value = getattr(self, name)
            if self.model is None and value != getattr(SamplingConfig, name):
                raise OptionError(f"{option(name)} is {value}, and would do nothing: tokens need --model.")
        if not self.scores() and self.limits != RewardLimits():
            raise OptionError("limits of rewards would do nothing: the run asks for none, and no --reward is given.")
        if self.scores():
            check_limits(self.limits, self.run().reward_name())

    def run(self) -> TrainConfig:
        """The run whose data they would be."""
        return TrainConfig(
            model=self.model,
            data=self.data,
            objective=self.objective,
            reward=self.reward,
            limits=self.limits,
            group=GroupConfig(self.experts, self.teachers, self.own, advantage=self.advantage),
            sampling=SamplingConfig(
                max_prompt_tokens=self.max_prompt_tokens,
                max_given_tokens=self.max_given_tokens,
                long_given=self.long_given,
                max_new_tokens=self.max_new_tokens,
            ),
            prompt_suffix=self.prompt_suffix,
            max_bad_fraction=self.max_bad_fraction,
        )

    def scores(self) -> bool:
        """Whether responses are scored: the run asks for rewards, or one is named."""
        return self.reward is not None or self.run().asks_for_rewards()


def run_data_check(config: CheckConfig) -> None:
    """Print what is found.

    Raises:
        OptionError: the run would refuse the data.
    """
    console, run = plain_console(), config.run()
    say = partial(console.print, highlight=False, soft_wrap=True)
    with reward_pool(run.reward_name(), run.limits) if config.scores() else nullcontext() as rewards:
        examples, bad = read_examples(config.data, limit=config.prompts, prompt_suffix=config.prompt_suffix)
        policy = load_encoder(config.model) if config.model else None
        found = inspect(examples, bad, run, policy, rewards)
    for example in found.examples[:RENDERED]:
        show_example(example, run, policy, console)
    if found.lengths:
        console.print(_length_table(found, "tokens" if policy else "characters"))
    console.print(_finding_table(found.findings))
    for finding in found.findings:
        _show_places(finding, say)
    for note in found.said:
        say(f"note: {note}")
    if found.refusals:
        raise OptionError(f"a run would refuse {config.data}: " + " ".join(dict.fromkeys(found.refusals)))
    experts, teachers, own = run.composition()
    say(
        f"a run would take {len(found.examples)} of {len(examples) + len(bad)} rows, in groups of at most {experts} "
        f"expert + {teachers} teacher + {own} own responses"
    )


def show_example(example: Example, config: TrainConfig, policy: Policy | None, console: Console) -> None:
    """A prompt and its first given response as the model reads them, what is trained on marked.

    Marks are colours in a terminal, and [[ ]] elsewhere.
    """
    responses = given_responses(example, config)
    first = responses[0] if responses else None
    if policy is None:
        prompt = example.prompt if isinstance(example.prompt, str) else _chat(example.prompt)
        answer = first.text if first else ""
    else:
        tokens = policy.encode_response(first.text, example.prompt) if first else []
        prompt = _decode(policy, policy.encode_prompt(example.prompt))
        answer = _decode(policy, tokens[: config.sampling.max_given_tokens])
    source = f"its first response is the {first.source}'s" if first else "no given response"
    title = f"{example.origin}, solution {example.solution[:60]!r}, {source}:"
    console.print(Text(title, "bold"), soft_wrap=True)
    shown = Text(_shortened(prompt))
    if console.is_terminal:
        shown.append(_shortened(answer), TRAINED)
    elif answer:
        shown.append(f"[[{_shortened(answer)}]]")
    shown.append("\n")
    console.print(shown, soft_wrap=True)


def _decode(policy: Policy, tokens: list[int]) -> str:
    """The text of tokens, those of control among them."""
    return cast(str, policy.tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _chat(messages: Sequence[dict]) -> str:
    return "".join(f"{message['role']}: {message['content']}\n" for message in messages)


def _shortened(text: str) -> str:
    """The beginning and the end of a long text."""
    half = LONGEST // 2
    return text if len(text) <= LONGEST else f"{text[:half]} ... {len(text) - LONGEST} characters ... {text[-half:]}"


def _length_table(found: Inspection, unit: str) -> Table:
    table = Table(unit, "number", "median", "95%", "longest", "mean reward")
    for lengths in found.lengths:
        table.add_row(*lengths.row())
    return table


def _finding_table(findings: Sequence[Finding]) -> Table:
    table = Table("found", "number", "of")
    for finding in findings:
        table.add_row(Text(finding.what), str(len(finding.places)), str(finding.of))
    return table


def _show_places(finding: Finding, say: Callable[[str], None]) -> None:
    """The first places of a finding, and how many more there are."""
    if finding.places:
        more = len(finding.places) - PLACES
        say(f"{finding.what}:")
        for place in finding.places[:PLACES]:
            say(f"  {place}")
        if more > 0:
            say(f"  and {more} more")
