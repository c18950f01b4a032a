"""The top of the page: what the runs came to, and how they differ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..estimates import Estimate, paired_difference
from ..held_out import Answer
from .chart import number, percent, swatch
from .lines import Line
from .runs import Run
from .text import escaped


def tiles(run: Run) -> str:
    """The few numbers of one run that matter."""
    found = []
    for key, name in (("sampled", _mean_name(run)), ("greedy", "greedy")):
        estimate = run.estimate(key)
        if estimate is not None:
            first = next((value for _, value in run.series(f"eval_{key}")), None)
            before = f"before training {percent(first)}" if first is not None and len(run.evaluated) > 1 else ""
            found.append((name, percent(estimate.value), "<br>".join(filter(None, (_bounds(estimate), before)))))
    most = max((int(name[13:]) for name in run.last_evaluation if name[13:].isdigit()), default=0)
    best = run.estimate(f"pass_at_{most}") if most > 1 else None
    if best is not None:
        found.append((f"pass@{most}", percent(best.value), _bounds(best)))
    if run.has("base_kl_token"):
        nats = number(run.last("base_kl") or 0)
        found.append(("KL to the base", f"{number(run.last('base_kl_token') or 0)} nats a token", f"{nats} a response"))
    if not run.is_evaluation:
        reward = run.last("reward_self")
        found.append(
            ("state", escaped(run.state), "" if reward is None else f"own reward {number(reward)} in the last step")
        )
    cells = "".join(f"<div><dt>{a}</dt><dd>{b}<small>{c}</small></dd></div>" for a, b, c in found)
    return f'<dl class="tiles">{cells}</dl>' if found else ""


def run_table(runs: Sequence[Run]) -> str:
    """A line a run: what it is, how far it came, and its last evaluation."""
    columns = [("sampled", "mean of the samples"), ("greedy", "greedy")]
    columns = [(key, name) for key, name in columns if any(run.estimate(key) for run in runs)]
    head = ["run", *(name for _, name in columns), "own reward", "KL", "state", "objective", "model"]
    rows = []
    for place, run in enumerate(runs):
        key = swatch(Line(run.name, place, place, place, []))
        cells = [f"{key}<b>{escaped(run.name)}</b>"]
        cells += [_cell(run.estimate(name)) for name, _ in columns]
        kl = run.last("base_kl_token") if run.is_evaluation else run.last("kl")
        cells += ["" if v is None else number(v) for v in (run.last("reward_self"), kl)]
        cells += [escaped(run.state), _config(run, "objective"), _model(run)]
        rows.append(cells)
    return table(_without_empty(head, rows), "The runs and their last evaluation")


def differences(runs: Sequence[Run]) -> str:
    """The other runs less the first one, prompt by prompt."""
    last = [_last_answers(run) for run in runs]
    rows = []
    for run, answers in zip(runs[1:], last[1:], strict=True):
        cells = [escaped(run.name)]
        most = 0
        for source in ("sample", "greedy"):
            found, shared = paired_difference(*([a for a in some if a.source == source] for some in (answers, last[0])))
            cells.append(_signed(found) if shared > 1 else "")
            most = max(most, shared)
        if most > 1:
            rows.append([*cells, str(most)])
    if not rows:
        return ""
    head = ["run", "mean of the samples", "greedy", "prompts"]
    return (
        f"<h3>Less {escaped(runs[0].name)}, on the same prompts</h3>"
        + table([head, *rows], f"Differences from {runs[0].name}")
        + '<p class="note">Mean of the difference prompt by prompt, with an interval of 95% from drawing prompts anew. '
        "A star: the interval does not hold 0, and tells the runs apart. That another seed of training would have "
        "given other weights is not in it.</p>"
    )


def table(rows: Sequence[Sequence[str]], name: str) -> str:
    """Rows of HTML, the first one the head; it scrolls by itself where the page is narrow."""
    head = "".join(f'<th scope="col">{cell}</th>' for cell in rows[0])
    body = "".join(
        "<tr>" + f'<th scope="row">{row[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>"
        for row in rows[1:]
    )
    label = escaped(name)
    return (
        f'<div class="scroll" role="region" aria-label="{label}" tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _without_empty(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[list[str]]:
    kept = [i for i in range(len(head)) if any(row[i] for row in rows)]
    return [[row[i] for i in kept] for row in (head, *rows)]


def _last_answers(run: Run) -> list[Answer]:
    return run.answers(run.evaluated[-1]) if run.evaluated else []


def _mean_name(run: Run) -> str:
    return f"mean of {run.samples} samples" if run.samples else "mean of the samples"


def _bounds(found: Estimate) -> str:
    return "" if found.low != found.low else f"95%: {percent(found.low)} to {percent(found.high)}"


def _cell(found: Estimate | None) -> str:
    return "" if found is None else f"{percent(found.value)}<small>{_bounds(found)}</small>"


def _signed(found: Estimate) -> str:
    value, low, high = (f"{100 * x:+.1f}" for x in found)
    sure = "" if found.low <= 0 <= found.high else " *"
    return f"{value} points{sure}<small>{low} to {high}</small>"


def _config(run: Run, key: str) -> str:
    value = run.config.get(key)
    return escaped(str(value)) if isinstance(value, str) else ""


def _model(run: Run) -> str:
    value = run.config.get("model")
    return escaped(Path(value).name) if isinstance(value, str) and not run.is_evaluation else ""
