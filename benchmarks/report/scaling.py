"""Time and memory against the number of tokens and against the vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..heads.names import SHORT, is_own
from .style import PEER, SMALL, Row, canvas, colour, count, label_style, save, spread

AXES = {"N": "tokens", "V": "vocabulary"}
PANELS = {"ms": "time per token, µs", "peak_mib": "peak extra memory, MiB"}
Points = list[tuple[int, float]]


def scaling(rows: Sequence[Row], path: Path) -> None:
    """A line for each head, named at its end; one that ends early, with a cross, ran no further."""
    sizes = {row["N"] for row in rows if row["case"].startswith("V=")}
    sweeps = {
        "N": [row for row in rows if not row["case"].startswith("V=")],
        "V": [row for row in rows if row["N"] in sizes],
    }
    heads = len({row["provider"] for row in rows})
    height = 2 * max(2.3, 0.155 * heads + 0.5)
    with canvas(height, 2, 2) as (figure, axes):
        figure.subplots_adjust(
            left=0.075, right=0.815, top=1 - 0.3 / height, bottom=0.42 / height, wspace=0.97, hspace=0.44
        )
        for column, (size, swept) in enumerate(sweeps.items()):
            for row, (key, title) in enumerate(PANELS.items()):
                _panel(axes[row][column], swept, size, key)
                axes[row][column].set_title(title, y=1.04)
                axes[row][column].set_xlabel(AXES[size], labelpad=2)
        save(figure, path, rows)


def lines(rows: Sequence[Row], size: str, key: str) -> dict[str, Points]:
    """Provider -> its points, by size.

    Times are those of a token: of a batch, all lines would be the same diagonal.
    """
    found: dict[str, Points] = {}
    for row in sorted(rows, key=lambda row: int(row[size])):
        if row[key]:
            value = 1000 * float(row["ms"]) / int(row["N"]) if key == "ms" else float(row[key])
            found.setdefault(row["provider"], []).append((int(row[size]), value))
    return found


def _thousands(value: float, _: int) -> str:
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"


def _panel(axis: Any, rows: Sequence[Row], size: str, key: str) -> None:
    from matplotlib.ticker import LogLocator

    found = lines(rows, size, key)
    sizes = sorted({int(row[size]) for row in rows})
    axis.set(xscale="log", yscale="log")
    for provider, points in found.items():
        own = is_own(provider)
        style = {"color": colour(provider), "zorder": 3 if own else 2, "alpha": 1 if own else 0.75}
        dashes = {"gft-sparse": (0, (4, 1.5)), "gft-logprob": (0, (1, 1.2))}.get(provider.rsplit("-", 1)[0], "-")
        axis.plot(*zip(*points, strict=True), linewidth=2 if own else 1, linestyle=dashes, **style)
        if points[-1][0] < sizes[-1]:
            axis.plot(*points[-1], marker="x", markersize=5, **style)
    axis.set_xticks(sizes, [count(value) for value in sizes])
    axis.set_xlim(sizes[0], sizes[-1])
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(_thousands)
    axis.minorticks_off()
    axis.grid(alpha=0.2, linewidth=0.6)
    _names(axis, found)


def _names(axis: Any, found: dict[str, Points]) -> None:
    """Names right of the panel, each as near to the end of its line as the others allow."""
    axis.autoscale_view()  # or the lines' ends would be those of axes from 0 to 1
    to_axes = axis.transData + axis.transAxes.inverted()
    ends = {provider: to_axes.transform(points[-1]) for provider, points in found.items()}
    inches = axis.get_position().height * axis.figure.get_figheight()
    heights = spread([end[1] for end in ends.values()], 0.15 / inches, -0.02, 1.05)
    for (provider, (x, y)), height in zip(ends.items(), heights, strict=True):
        early = x < 0.999
        axis.annotate(
            SHORT[provider] + (" \u00d7" if early else ""),
            (1.0, height),
            xytext=(10, 0),
            textcoords="offset points",
            xycoords="axes fraction",
            va="center",
            fontsize=SMALL,
            **label_style(provider),
        )
        end = 1 + 8 / (72 * axis.get_position().width * axis.figure.get_figwidth())
        axis.plot(
            (x, 1.0 if early else x, end),
            (y, y, height),
            transform=axis.transAxes,
            clip_on=False,
            color=colour(provider) if not early else PEER,
            linewidth=0.6,
            linestyle=":" if early else "-",
        )
