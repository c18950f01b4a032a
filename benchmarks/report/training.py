"""Training curves with exact and with column-sparse gradients."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..sparse import tables
from .style import OWN, PEER, Row, canvas, save

MEAN_OF = 20  # updates: a single batch's NLL says nothing
EXACT: dict[str, Any] = {"color": PEER, "linewidth": 3}
SPARSE: dict[str, Any] = {"color": OWN, "linewidth": 1.5, "linestyle": (0, (4, 1.5))}


def training(rows: Sequence[Row], path: Path) -> None:
    """NLL against updates: two lines for each seed, exact and column-sparse."""
    from matplotlib.lines import Line2D

    names = tables.tasks(rows)
    with canvas(2.5, 1, len(names)) as (figure, axes):
        figure.subplots_adjust(left=0.07, right=0.985, top=0.79, bottom=0.19, wspace=0.2)
        for axis, task in zip(axes[0], names, strict=True):
            for (_, head), steps in tables.curves(rows, task).items():
                nll = [float(row["nll"]) for row in steps]
                means = [statistics.mean(nll[i : i + MEAN_OF]) for i in range(0, len(nll), MEAN_OF)]
                style = SPARSE if head == "sparse" else EXACT
                axis.plot([i + MEAN_OF / 2 for i in range(0, len(nll), MEAN_OF)], means, **style)
            axis.set(xlabel="update", title=f"{task}: NLL, nats")
        heads = [Line2D([], [], **style) for style in (EXACT, SPARSE)]
        words = ["exact gradients", "column-sparse gradients"]
        figure.legend(heads, words, loc="upper left", ncols=2, frameon=False, labelcolor="linecolor", borderaxespad=0)
        save(figure, path, rows)
