"""The figure of the first screen: time and memory of one batch, a bar for each head."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..heads.names import SHORT, is_own
from .style import INK, SMALL, Row, canvas, colour, label_style, number, save

BAR = 0.21  # inches a head takes
CUT = 2.6  # a bar longer than so many times eager's is cut, or it would flatten all others
NUMBER = 0.16  # of a panel's width: what a number at a bar takes
PANELS = {"ms": "time of a GFT batch, ms", "peak_mib": "peak extra memory, MiB"}


def bars(rows: Sequence[Row], path: Path) -> None:
    """The quickest head on top; a head that was not timed says why in place of its bar."""
    heads = sorted(rows, key=lambda row: -float(row["ms"] or "inf"))
    with canvas(BAR * len(heads) + 0.45, 1, 2, width_ratios=(1, 1)) as (figure, axes):
        figure.subplots_adjust(left=0.215, right=0.955, top=1 - 0.34 / figure.get_figheight(), bottom=0.01, wspace=0.16)
        for axis, (key, title) in zip(axes[0], PANELS.items(), strict=True):
            _panel(axis, heads, key)
            axis.set_title(title, color=INK)
        for height, row in enumerate(heads):
            axes[0][0].annotate(
                SHORT[row["provider"]],
                (0, height),
                xytext=(-6, 0),
                textcoords="offset points",
                ha="right",
                va="center",
                **label_style(row["provider"]),
            )
        save(figure, path, rows)


def _panel(axis: Any, heads: Sequence[Row], key: str) -> None:
    values = [float(row[key] or 0) for row in heads]
    eager = next((value for value, row in zip(values, heads, strict=True) if row["provider"] == "eager"), 0.0)
    limit = min(max(values), CUT * eager) if eager else max(values)
    for height, (row, value) in enumerate(zip(heads, values, strict=True)):
        provider = row["provider"]
        numbered = is_own(provider) or provider == "eager" or value > limit or not row[key]
        style = {"height": 0.62, "color": colour(provider), "alpha": 1 if is_own(provider) else 0.6}
        drawn = min(value, limit)
        if value > limit:  # a gap near its end shows that it is cut
            axis.barh(height, 0.05 * limit, left=0.95 * limit, **style)
            drawn = 0.925 * limit
        axis.barh(height, drawn, **style)
        if numbered:
            axis.annotate(
                number(row[key]) if row[key] else reason(row) if key == "ms" else "",
                (min(value, limit), height),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                fontsize=SMALL,
                **label_style(provider),
            )
        if eager and not (numbered and value < eager < value + NUMBER * limit):  # no line across a number
            around = (height - 0.5, height + 0.5)
            axis.plot((eager, eager), around, color=INK, linewidth=0.8, linestyle=(0, (2, 2)), zorder=0)
    axis.set_xlim(0, 1.16 * limit)
    axis.set_ylim(-0.6, len(heads) - 0.4)
    axis.set_axis_off()


def reason(row: Row) -> str:
    """Why a head has no bar, in two or three words."""
    note = row["note"]
    if "OutOfMemory" in note or "out of memory" in note:
        return "out of memory"
    return "gradient off" if "not timed" in note else "failed"
