"""The tables of docs/column-sparse.md."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from ..heads.names import NAMES, is_own
from ..record import RESULTS, newest_run, read_rows

LAST = 20  # steps whose mean NLL is compared
Row = dict[str, str]


def newest(**wanted: str) -> dict[tuple[str, ...], Row]:
    """(inputs, tau, rows, eps, error, variant) -> the newest row of sparse.csv."""
    keys = ("inputs", "tau", "rows", "eps", "error", "variant")
    rows = [row for row in read_rows(RESULTS / "sparse.csv") if all(row[key] == value for key, value in wanted.items())]
    return {tuple(row[key] for key in keys): row for row in rows}


def share(text: str) -> str:
    return f"{100 * float(text):.1f}%"


def variants_table() -> str:
    """The variants side by side at equal eps."""
    lines = [
        "| rows a chunk | eps | columns kept | dhidden: tail | none | mean | dweight: tail | none | bound of dz "
        "| cce: tiles kept | dhidden | dweight |",
        "|" + "---|" * 12,
    ]
    found = newest(inputs="real", tau="0.7", error="")
    for rows, eps in dict.fromkeys((key[2], key[3]) for key in found):
        tail, none, mean, cce = (
            found["real", "0.7", rows, eps, "", variant] for variant in ("tail", "none", "mean", "cce")
        )
        cells = (
            rows,
            eps,
            share(tail["columns"]),
            f"**{tail['dh_error']}**",
            none["dh_error"],
            mean["dh_error"],
            f"**{tail['dw_error']}**",
            none["dw_error"],
            tail["bound"],
            share(cce["columns"]),
            cce["dh_error"],
            cce["dw_error"],
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def inputs_table() -> str:
    """What a requested error costs on each kind of input."""
    lines = [
        "| inputs | tau | rows a chunk | error asked for | bound reported | dhidden | dweight | columns kept | "
        "chunks exact "
        "| time over exact | at the same rows a chunk |",
        "|" + "---|" * 11,
    ]
    for (inputs, tau, rows, _, error, _), row in newest(eps="", variant="tail").items():
        cells = (
            inputs,
            tau,
            rows,
            f"{float(error):.0e}",
            row["bound"],
            row["dh_error"],
            row["dw_error"],
            share(row["columns"]),
            share(row["exact_chunks"]),
            f"{row['over_exact']}x",
            row["over_exact_same_rows"] and f"{row['over_exact_same_rows']}x",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def timed() -> dict[str, Row]:
    """The newest run of every head on recorded activations, all rows active."""
    return newest_run(read_rows(RESULTS / "cpu.csv"), case="smollm2 all-active", N="4096", inputs="real")


def time_table() -> str:
    """Every head on recorded activations."""
    run = timed().values()
    lines = [
        "| head | time | against eager | against the bare GEMMs | peak extra memory | dhidden error | dweight error |",
        "|" + "---|" * 7,
    ]
    for row in sorted(run, key=lambda row: (row["provider"] == "bare-gemms", is_own(row["provider"]))):
        cells = (
            NAMES[row["provider"]],
            f"{float(row['ms']):.0f} ms",
            f"{row['ratio_to_eager']}x",
            f"{row['over_bare_gemms']}x",
            f"{row['peak_mib']} MiB",
            row["dh_error"],
            row["dw_error"],
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def summary_table() -> str:
    """Three lines of the same: eager, our exact and our sparse head."""
    return "\n".join(
        line
        for line in time_table().splitlines()
        if line.startswith(("| head", "|---", "| eager", "| **gft-kernels** fused"))
    )


def trained() -> list[Row]:
    """Every row of the training curves."""
    return read_rows(RESULTS / "sparse_training.csv")


def curves(rows: Sequence[Row], task: str) -> dict[tuple[str, str], list[Row]]:
    """(seed, head) -> its rows by step."""
    found: dict[tuple[str, str], dict[int, Row]] = {}
    for row in rows:
        if row["task"] == task and row["nll"]:
            found.setdefault((row["seed"], row["head"]), {})[int(row["step"])] = row
    return {key: [steps[step] for step in sorted(steps)] for key, steps in found.items()}


def tasks(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["task"] for row in rows))


def _end(rows: Sequence[Row]) -> float:
    return statistics.mean(float(row["nll"]) for row in rows[-LAST:])


def training_table() -> str:
    """Where the curves end, exact and sparse, a line a seed.

    The spread of the seeds is what a difference is judged by.
    """
    lines = [
        f"| task | updates | seed | NLL of the last {LAST}, exact | sparse | difference | exact, range over seeds | "
        "columns kept |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for task in tasks(trained()):
        found = curves(trained(), task)
        seeds = dict.fromkeys(seed for seed, _ in found)
        exact = {seed: _end(found[seed, "exact"]) for seed in seeds}
        for seed in seeds:
            sparse = found[seed, "sparse"]
            kept = statistics.mean(float(row["sparse_columns"]) for row in sparse)
            cells = (
                task,
                str(len(sparse)),
                seed,
                f"{exact[seed]:.4f}",
                f"{_end(sparse):.4f}",
                f"{_end(sparse) - exact[seed]:+.4f}",
                f"{max(exact.values()) - min(exact.values()):.4f}",
                share(str(kept)),
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


TABLES = {
    "sparse-variants": variants_table,
    "sparse-inputs": inputs_table,
    "sparse-time": time_table,
    "sparse-training": training_table,
}
