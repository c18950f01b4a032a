"""The page of `gft report`: one file that needs nothing else, no script and no network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from string import Template

from .chart import chart, number, percent, swatch
from .lines import SMOOTH_FROM, Line, lines_of, pass_lines
from .overview import differences, run_table, table, tiles
from .panels import HELD_OUT, PANELS
from .reading import reading
from .runs import Run
from .text import escaped

MARK = '<meta name="generator" content="gft report">'
ROWS = 9  # of a picture's table
STYLE = Path(__file__).with_name("style.css")

# The browser itself refuses scripts and whatever would be fetched, should a text ever get through.
PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
$mark
<title>$title</title>
<style>$style</style>
</head>
<body>
<a class="skip" href="#main">Skip to the numbers</a>
<header><h1>$title</h1><p class="lead">$lead</p></header>
<nav aria-label="Sections"><ul>$links</ul></nav>
<main id="main">
$body
</main>
<footer>$footer</footer>
</body>
</html>
""")
FOOTER = (
    "Intervals hold 95% and come from drawing the held-out prompts anew (a bootstrap over prompts); they do not tell "
    "how far another seed would be. A reward of 1 or more counts as right in pass@k; failed rewards are in no mean. "
    f"Lines of {SMOOTH_FROM} points and more are drawn thin, with a running mean over a twentieth of them in bold."
)


def page(runs: Sequence[Run], prompts: int) -> str:
    """The HTML of runs; `prompts` is how many of those with texts are shown to read."""
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs compared"
    sections = [("overview", "Overview", _overview(runs)), *_pictures(runs)]
    texts = reading(runs, prompts)
    links = [(slug, name) for slug, name, _ in sections] + ([("samples", "Samples to read")] if texts else [])
    body = "".join(
        f'<section id="{slug}"><h2>{escaped(name)}</h2>{content}</section>' for slug, name, content in sections
    )
    return PAGE.substitute(
        mark=MARK,
        title=escaped(title),
        style=STYLE.read_text(encoding="utf-8"),
        lead=_lead(runs),
        links="".join(f'<li><a href="#{slug}">{escaped(name)}</a></li>' for slug, name in links),
        body=body + texts,
        footer=FOOTER,
    )


def _lead(runs: Sequence[Run]) -> str:
    if len(runs) > 1:
        return escaped(", ".join(run.name for run in runs))
    config = runs[0].config
    facts = [("objective", "objective"), ("model", "model"), ("data", "data"), ("seed", "seed")]
    kept = [f"{name} {config[key]}" for key, name in facts if isinstance(config.get(key), (str, int))]
    return escaped(", ".join(kept if not runs[0].is_evaluation else kept[-1:]))


def _overview(runs: Sequence[Run]) -> str:
    parts = [tiles(runs[0])] if len(runs) == 1 else [run_table(runs), differences(runs)]
    for run in runs:
        if run.unread:
            parts.append(
                f'<p class="note">{escaped(run.name)}: {run.unread} lines of metrics.jsonl could not be read; one is '
                "usual where a run is being written or was killed.</p>"
            )
        if not run.rows:
            parts.append(f'<p class="note">{escaped(run.name)}: no step is told of yet.</p>')
    return "".join(parts)


def _pictures(runs: Sequence[Run]) -> list[tuple[str, str, str]]:
    """(slug, name, HTML) of every section that has a picture."""
    found: dict[str, list[str]] = {}
    for panel in PANELS:
        lines = lines_of(panel, runs)
        if lines and not (panel.section == HELD_OUT and all(run.is_evaluation for run in runs)):
            svg = chart(lines, panel.title, is_share=panel.is_share, is_count=panel.is_count)
            found.setdefault(panel.section, []).append(figure(panel.title, panel.says, svg, lines, panel.is_share))
    at_k = pass_lines(runs)
    if at_k:
        svg = chart(at_k, "pass@k", is_share=True, x_name="k", x_label=lambda v: number(2**v))
        says = "A prompt's chance that one of k samples is right, after the last evaluation."
        figures = found.setdefault(HELD_OUT, [])
        figures.insert(min(2, len(figures)), figure("pass@k", says, svg, at_k, True, "k", as_power=True))
    order = [HELD_OUT, *(name for name in found if name != HELD_OUT)]
    return [
        (name.lower().replace(" ", "-"), name, f'<div class="grid">{"".join(found[name])}</div>')
        for name in order
        if name in found
    ]


def figure(
    title: str,
    says: str,
    svg: str,
    lines: Sequence[Line],
    is_share: bool,
    x_name: str = "update",
    as_power: bool = False,
) -> str:
    """A picture with its title, legend, and numbers."""
    legend = "".join(f"<li>{swatch(line)}{escaped(line.label)}</li>" for line in lines)
    key = f'<ul class="legend">{legend}</ul>' if len(lines) > 1 else ""
    return (
        f"<figure><figcaption><b>{escaped(title)}</b><span>{escaped(says)}</span></figcaption>{key}{svg}"
        f"<details><summary>Numbers</summary>{_numbers(title, lines, is_share, x_name, as_power)}</details></figure>"
    )


def _numbers(title: str, lines: Sequence[Line], is_share: bool, x_name: str, as_power: bool) -> str:
    """A table of a few points of every line, the first and the last among them."""
    values = [{p.x: p.y for p in line.points} for line in lines]
    xs = sorted({x for found in values for x in found})
    chosen = sorted({xs[round(i * (len(xs) - 1) / (ROWS - 1))] for i in range(ROWS)})
    show = percent if is_share else number
    rows = [
        [f"{2**x:.0f}" if as_power else f"{x:g}", *(_shown(found.get(x), show) for found in values)] for x in chosen
    ]
    return table([[x_name, *(escaped(line.label) for line in lines)], *rows], f"Numbers of {title}")


def _shown(value: float | None, show: object) -> str:
    return "" if value is None else show(value)  # type: ignore[operator]
