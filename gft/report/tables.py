"""The tables that a command ends with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Column, Table

from ..evaluation.estimates import Estimate

OTHERS = {
    "distinct": "distinct: different texts of a prompt",
    "distinct_2": "distinct-2: different pairs of tokens",
    "response_tokens": "tokens a response",
    "truncated": "truncated",
}
KL_WORDS = {
    "kl": "KL to the base, nats a response",
    "kl_k3": "the same by k3",
    "kl_token": "KL to the base, nats a token",
    "kl_k3_token": "the same by k3",
}


def accuracy_table(rows: Sequence[tuple[str, dict]], title: str, samples: int) -> Table:
    """One line a run: greedy accuracy, the mean of `samples` samples at temperature 1, their
    intervals if they have any, and what is known of the run: its updates, the sequences it reads
    per update with its own samples among them, its seconds.
    """
    known = [key for key in ("updates", "sequences", "seconds") if any(key in r for _, r in rows)]
    titles = {"sequences": "sequences per update"}
    longest = max((len(name) for name, _ in rows), default=0)
    first = Column("", min_width=min(longest, 20))  # names of methods stay whole, paths may fold
    table = Table(first, "greedy", f"mean@{samples}", *(titles.get(key, key) for key in known), title=title)
    for name, r in ((name, r | r.get("numbers", {})) for name, r in rows):
        own = f" ({r['own']} own)" if r.get("own") else ""
        shown = {key: f"{r[key]:.0f}" for key in known if key in r}
        shown |= {"sequences": shown["sequences"] + own} if "sequences" in shown else {}
        means = (with_interval(r, key) for key in ("greedy", "sampled"))
        table.add_row(name, *means, *(shown.get(key, "") for key in known))
    return table


def estimate_table(numbers: Mapping[str, float], kl: Mapping[str, Estimate]) -> Table:
    """The other numbers of an evaluation: pass@k, diversity, lengths, and the KL to the base."""
    table = Table("samples", "", "95% interval", title="intervals are over prompts")
    for name in (n for n in numbers if n.startswith("pass_at_") and f"{n}_low" in numbers):
        table.add_row(
            f"pass@{name.removeprefix('pass_at_')}",
            share(numbers[name]),
            f"{share(numbers[name + '_low'])} to {share(numbers[name + '_high'])}",
        )
    for name, words in OTHERS.items():
        if name in numbers:
            table.add_row(words, f"{numbers[name]:.4g}", "")
    for name, found in kl.items():
        bounds = "" if found.low != found.low else f"{found.low:.4g} to {found.high:.4g}"
        table.add_row(KL_WORDS[name], f"{found.value:.4g}", bounds)
    return table


def with_interval(row: Mapping[str, float | None], key: str) -> str:
    """A percentage, and in brackets the interval that the row has for it."""
    low, high = row.get(f"{key}_low"), row.get(f"{key}_high")
    bounds = "" if low is None or high is None else f" ({low:.1%} to {high:.1%})"
    return share(row.get(key)) + bounds


def share(value: float | None) -> str:
    """A percentage; "-" where nothing could be scored."""
    return "-" if value is None or value != value else f"{value:.1%}"


def run_table(rows: Sequence[dict], title: str) -> Table:
    """First and last tenth of a run's metrics side by side."""
    steps = [r for r in rows if "loss" in r]
    part = max(len(steps) // 10, 1)
    table = Table(Column("metric", no_wrap=True), f"first {part} steps", f"last {part} steps", title=title)
    for key in dict.fromkeys(k for r in steps for k in r):
        columns = [
            [r[key] for r in some if isinstance(r.get(key), (int, float))] for some in (steps[:part], steps[-part:])
        ]
        if key not in ("step", "skipped") and all(columns):
            table.add_row(key, *(f"{sum(c) / len(c):.4g}" for c in columns))
    for r in (r for r in rows if "eval_greedy" in r):
        table.add_row(
            f"held-out at step {r['step']}",
            f"greedy {with_interval(r, 'eval_greedy')}",
            f"sampled {with_interval(r, 'eval_sampled')}",
        )
    return table
