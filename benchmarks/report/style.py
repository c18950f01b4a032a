"""How every figure looks: ours in one colour, the others grey, readable on light and dark pages.

A figure is 600 pixels wide, so that its text keeps its size on a page of that width. The ink is a
grey of the same contrast on white and on a dark page: a picture inside a page cannot know which of
the two it is on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..heads.names import is_own

OWN, PEER, INK = "#1f9a6a", "#8e959d", "#7b8087"
WIDTH = 6.25  # inches, 600 pixels
TEXT, SMALL = 9.0, 8.2  # points: 12 and 11 pixels
Row = dict[str, str]


@contextmanager
def canvas(height: float, rows: int, columns: int, **grid: Any) -> Iterator[tuple[Any, Any]]:
    """A figure of the common width and style, and its axes [rows, columns]."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    ink = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color")
    style: dict[Any, Any] = {
        **dict.fromkeys(ink, INK),
        "font.size": TEXT,
        "axes.titlesize": TEXT,
        "axes.titlelocation": "left",
        "xtick.labelsize": SMALL,
        "ytick.labelsize": SMALL,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with pyplot.rc_context(style):
        figure, axes = pyplot.subplots(rows, columns, figsize=(WIDTH, height), squeeze=False, gridspec_kw=grid)
        try:
            yield figure, axes
        finally:
            pyplot.close(figure)


def save(figure: Any, path: Path, rows: Sequence[Row]) -> None:
    """Write the SVG, the digest of its rows in its description."""
    import matplotlib

    path.parent.mkdir(exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": path.name}):
        figure.savefig(path, transparent=True, metadata={"Date": None, "Description": f"rows {digest(rows)}"})


def digest(rows: Sequence[Row]) -> str:
    """What tells one set of rows from another."""
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:16]


def colour(provider: str) -> str:
    """Green for ours; eager, which all are compared with, is a darker grey than the peers."""
    return OWN if is_own(provider) else INK if provider == "eager" else PEER


def label_style(provider: str) -> dict[str, Any]:
    """Colour and weight of a provider's name."""
    return {"color": colour(provider), "weight": "bold" if is_own(provider) else "normal"}


def number(text: str) -> str:
    """A measured number with as many digits as a reader wants: three at most below a thousand."""
    value = float(text)
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def count(value: int) -> str:
    """A size on an axis: 512, 4k, 128k."""
    return f"{value // 1024}k" if value >= 1024 and value % 1024 == 0 else str(value)


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Heights as near to those wanted as a least `gap` between neighbours allows, within the range.

    Neighbours that are too near are centred on their mean, as a block that grows while it touches
    another; a block that leaves the range is moved back into it.
    """
    blocks: list[list[float]] = []  # [sum of the wanted heights, how many]
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])

    def bottom(block: list[float]) -> float:
        half = gap * (block[1] - 1) / 2
        return min(max(block[0] / block[1] - half, low), high - 2 * half)

    for i in order:
        blocks.append([wanted[i], 1])
        while len(blocks) > 1 and bottom(blocks[-2]) + gap * blocks[-2][1] > bottom(blocks[-1]):
            total, size = blocks.pop()
            blocks[-1][0] += total
            blocks[-1][1] += size
    placed = [bottom(block) + gap * k for block in blocks for k in range(int(block[1]))]
    found = [0.0] * len(wanted)
    for i, height in zip(order, placed, strict=True):
        found[i] = height
    return found
