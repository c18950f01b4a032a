"""python -m benchmarks.report.plot: figures from the CSV rows, readable on light and dark pages.

Each SVG carries a digest of the rows it was drawn from: a test compares it with that of the rows
present.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from ..heads.names import NAMES, is_own, plain
from ..record import RESULTS, ROOT, read_rows
from ..sparse import tables

FIGURES = ROOT / "benchmarks" / "figures"
OWN, PEER, FLOOR, INK = "#2a9d6f", "#7a8ba3", "#c9a227", "#808080"
Row = dict[str, str]


def latest(rows: Sequence[Row]) -> list[Row]:
    """The timed rows of whole steps, the newest of each case and provider."""
    found = {
        (row["case"], row["N"], row["inputs"], row["provider"]): row
        for row in rows
        if row["ms"] and row["mode"] == "full"
    }
    return list(found.values())


def digest(rows: Sequence[Row]) -> str:
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:16]


def _save(figure, path: Path, rows: Sequence[Row]) -> None:
    import matplotlib

    path.parent.mkdir(exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": path.name}):
        metadata = {"Date": None, "Description": f"rows {digest(rows)}"}
        figure.savefig(path, transparent=True, bbox_inches="tight", metadata=metadata)


def _axes(columns: int, size: tuple[float, float]):
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    style = {
        name: INK
        for name in ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color")
    }
    with pyplot.rc_context(
        {**style, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10}
    ):
        figure, axes = pyplot.subplots(1, columns, figsize=size, squeeze=False, constrained_layout=True)
    return figure, axes[0]


def bars(rows: Sequence[Row], path: Path) -> None:
    """Time of a GFT batch and peak memory, a bar for each provider, ours in green, the bare GEMMs
    as a line.
    """
    figure, axes = _axes(2, (9, 0.32 * len(rows) + 1))
    heads = sorted((row for row in rows if row["provider"] != "bare-gemms"), key=lambda row: -float(row["ms"]))
    floor = [row for row in rows if row["provider"] == "bare-gemms"]
    labels, colours = (
        [plain(row["provider"]) for row in heads],
        [OWN if is_own(row["provider"]) else PEER for row in heads],
    )
    for axis, key, title in zip(
        axes, ("ms", "peak_mib"), ("milliseconds, forward and backward", "peak extra memory, MiB"), strict=True
    ):
        drawn = axis.barh(labels, [float(row[key] or 0) for row in heads], color=colours)
        axis.bar_label(drawn, fmt="%.0f", padding=3, color=INK)
        axis.set_title(title)
        axis.margins(x=0.15)
    axes[1].set_yticklabels([])
    for row in floor:
        axes[0].axvline(float(row["ms"]), color=FLOOR, linestyle="--", linewidth=1)
        axes[0].text(
            float(row["ms"]), len(heads) - 0.4, " the three bare GEMMs, all rows", color=FLOOR, va="bottom", fontsize=8
        )
    _save(figure, path, rows)


def curves(rows: Sequence[Row], path: Path) -> None:
    """Time and peak memory against N and against V; a line ends where its provider did not run."""
    sweeps = {"N": [row for row in rows if not row["case"].startswith("V=")]}
    size = {row["N"] for row in rows if row["case"].startswith("V=")}
    sweeps["V"] = [row for row in rows if row["N"] in size]
    figure, axes = _axes(4, (14, 3.4))
    for i, (name, swept) in enumerate(sweeps.items()):
        for axis, key, title in zip(
            axes[2 * i :], ("ms", "peak_mib"), ("milliseconds", "peak extra MiB"), strict=False
        ):
            for provider in dict.fromkeys(row["provider"] for row in swept):
                points = sorted(
                    (int(row[name]), float(row[key])) for row in swept if row["provider"] == provider and row[key]
                )
                axis.plot(*zip(*points, strict=True), marker="o", markersize=3, label=plain(provider), **line(provider))
            axis.set(xscale="log", yscale="log", xlabel=name, title=title)
            axis.set_xticks(sorted({int(row[name]) for row in swept}), sorted({int(row[name]) for row in swept}))
            axis.minorticks_off()
            axis.grid(alpha=0.3)
    axes[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=7, labelcolor=INK)
    _save(figure, path, rows)


def training(rows: Sequence[Row], path: Path) -> None:
    """NLL against updates, exact and sparse of each seed, means over 10 updates."""
    names = tables.tasks()
    figure, axes = _axes(len(names), (4.5 * len(names), 3))
    for axis, task in zip(axes, names, strict=True):
        for (seed, head), steps in tables.curves(task).items():
            nll = [float(row["nll"]) for row in steps]
            means = [sum(nll[i : i + 10]) / len(nll[i : i + 10]) for i in range(0, len(nll), 10)]
            sparse = head == "sparse"
            style = {"color": OWN if sparse else PEER, "linestyle": "--" if sparse else "-", "linewidth": 1.5}
            axis.plot(range(0, len(nll), 10), means, label=f"{head}, seed {seed}", **style)
        axis.set(title=task, xlabel="update", ylabel="NLL, nats")
        axis.legend(frameon=False, labelcolor=INK, fontsize=7)
    _save(figure, path, rows)


def line(provider: str) -> dict:
    """The same line for a provider in every panel: ours green and wide, the bare GEMMs dashed,
    peers in colours by their place in NAMES.
    """
    from matplotlib import colormaps

    if is_own(provider):
        return {
            "color": OWN,
            "linewidth": 2,
            "linestyle": {"gft-sparse": ":", "gft-logprob": "-."}.get(provider.rsplit("-", 1)[0], "-"),
        }
    if provider == "bare-gemms":
        return {"color": FLOOR, "linewidth": 1.5, "linestyle": "--"}
    return {"color": colormaps["tab20"](list(NAMES).index(provider) % 20), "linewidth": 1}


def figures() -> dict[str, tuple]:
    """File name -> (how it is drawn, its rows), for the figures that have rows."""
    found: dict[str, tuple] = {"sparse-training.svg": (training, read_rows(RESULTS / "sparse_training.csv"))}
    for file, head, N in (("cpu.csv", "small", "1024"), ("gpu.csv", "published", "8192")):
        device, rows = file.split(".")[0], latest(read_rows(RESULTS / file))
        run = next((row["commit"] for row in reversed(rows) if row["case"].startswith("V=")), "")
        chosen = [row for row in rows if (row["case"], row["N"]) == (f"{head} gft-batch", N)]
        found[f"{device}.svg"] = (bars, chosen)
        scaling = [
            r for r in rows if r["commit"] == run and (r["case"] == f"{head} gft-batch" or r["case"].startswith("V="))
        ]
        sizes = {(row["case"], row["N"]) for row in scaling}
        found[f"{device}-scaling.svg"] = (curves, scaling if len(sizes) > 2 else [])
    return {name: (draw, rows) for name, (draw, rows) in found.items() if rows}


def main() -> None:
    for name, (draw, rows) in figures().items():
        draw(rows, FIGURES / name)


if __name__ == "__main__":
    main()
