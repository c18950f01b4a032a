"""Samples to read: held-out prompts, what every run answered, and what that scored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..estimates import PASSED
from ..held_out import KEPT_SAMPLES, Answer
from .runs import Run
from .text import escaped, prompt_text, shown

FILTERS = (("all", "all"), ("mixed", "some right, some wrong"), ("wrong", "none right"), ("failed", "with failures"))
BEGINNING = 140  # characters of a prompt in its line


def reading(runs: Sequence[Run], prompts: int) -> str:
    """The section, for as many of the prompts whose texts were kept; "" if there are none."""
    told = {run.name: list(_evaluations(run)) for run in runs}
    asked: dict[str, Answer] = {}
    for _, answers in (evaluation for found in told.values() for evaluation in found):
        for answer in answers:
            if answer.tokens or answer.response or answer.prompt:
                asked.setdefault(answer.prompt_id, answer)
    if not asked or prompts == 0:
        return ""
    blocks = [_prompt(place, question, told) for place, question in enumerate(list(asked.values())[:prompts], 1)]
    buttons = "".join(
        f'<label><input type="radio" name="only" id="only-{kind}"{" checked" if kind == "all" else ""}> {words}</label>'
        for kind, words in FILTERS
    )
    return (
        '<section id="samples"><h2>Samples to read</h2>'
        f'<fieldset class="filter"><legend>Show</legend>{buttons}</fieldset>{"".join(blocks)}</section>'
    )


def _evaluations(run: Run) -> Iterator[tuple[str, list[Answer]]]:
    """The last evaluation, then the greedy answers of the first."""
    if not run.evaluated:
        return
    first, last = run.evaluated[0], run.evaluated[-1]
    yield "" if run.is_evaluation else f"after {last} updates", run.answers(last)
    if first != last:
        when = f"after {first} updates" if first else "before training"
        yield when, [a for a in run.answers(first) if a.source == "greedy"]


def _prompt(place: int, question: Answer, told: dict[str, list[tuple[str, list[Answer]]]]) -> str:
    final: list[Answer] = []
    parts = [_block("prompt", prompt_text(question.prompt))]
    if question.solution:
        parts.append(_block("solution", question.solution))
    for name, evaluations in told.items():
        for number, (when, answers) in enumerate(evaluations):
            own = [a for a in answers if a.prompt_id == question.prompt_id]
            final += own if number == 0 else []
            title = ", ".join(filter(None, (name if len(told) > 1 else "", when)))
            parts += [_answer(title, a) for a in own if a.sample < KEPT_SAMPLES and (a.tokens or a.response)]
    right = sum(a.reward is not None and a.reward >= PASSED for a in final)
    scored = sum(a.reward is not None for a in final)
    kinds = ["mixed"] * (0 < right < scored) + ["wrong"] * (right == 0) + ["failed"] * (scored < len(final))
    beginning = " ".join(prompt_text(question.prompt)[: 4 * BEGINNING].split())[:BEGINNING]
    return (
        f'<details class="{" ".join(["ask", *kinds])}"><summary><span>{place}</span>'
        f'<span class="of"><bdi>{escaped(beginning)}</bdi></span><span class="score">{right} of {scored} right'
        f'</span></summary><div class="body">{"".join(parts)}</div></details>'
    )


def _answer(title: str, answer: Answer) -> str:
    kind = "greedy" if answer.source == "greedy" else f"sample {answer.sample + 1}"
    notes = [f"{len(answer.tokens)} tokens"] * bool(answer.tokens) + ["cut at the limit"] * bool(answer.truncated)
    about = f"{escaped(title + ': ') if title else ''}{kind}, {_score(answer)}{''.join(f', {note}' for note in notes)}"
    return _block(about, answer.response)


def _block(title: str, text: str) -> str:
    return f'<div><h4>{title}</h4><pre dir="auto">{shown(text) or "&nbsp;"}</pre></div>'


def _score(answer: Answer) -> str:
    """A sign, a word and the number: colour alone would not do."""
    if answer.reward is None:
        return f'<span class="score failed">! no reward: {shown(str(answer.error))}</span>'
    kind, sign = (
        ("right", "✓") if answer.reward >= PASSED else ("wrong", "✗") if answer.reward <= 0 else ("partly", "~")
    )
    return f'<span class="score {kind}">{sign} {answer.reward:.4g}</span>'
