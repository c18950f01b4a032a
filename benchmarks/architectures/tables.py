"""The tables of docs/architectures-tested.md."""

from __future__ import annotations

import collections

from ..record import RESULTS, read_rows

Row = dict[str, str]
MEANING = {
    "exact": "loss, log-probs and every gradient equal those of the model's own logits",
    "refused": "`fuse_loss` raises, and says why",
    "wrong": "a difference that is not rounding",
    "not built": "the tiny model itself could not be made, or run, on a CPU",
}


def newest() -> dict[str, Row]:
    """Model type -> its row of the latest run of all."""
    rows = read_rows(RESULTS / "architectures.csv")
    last = rows[-1]
    same = ("date", "commit", "transformers")
    return {row["model_type"]: row for row in rows if all(row[key] == last[key] for key in same)}


def with_status(status: str) -> list[Row]:
    return [row for row in newest().values() if row["status"] == status]


def summary_table() -> str:
    """How many of each status."""
    rows = list(newest().values())
    count = collections.Counter(row["status"] for row in rows)
    first = rows[0]
    lines = [
        f"{len(rows)} model types, {len({row['class'] for row in rows if row['class']})} classes built; transformers "
        f"{first['transformers']}, torch {first['torch']}, commit {first['commit']}, {first['date']}.",
        "",
        "| status | model types | largest error | |",
        "|---|---|---|---|",
    ]
    for status, meaning in MEANING.items():
        errors = [float(row["error"]) for row in with_status(status) if row["error"]]
        largest = f"{max(errors):.0e}" if errors else ""
        lines.append(f"| {status} | {count[status]} | {largest} | {meaning} |")
    return "\n".join(lines)


def exact_table() -> str:
    """The exact ones, by what they apply to their logits."""
    by_transforms: dict[str, list[str]] = {}
    for row in with_status("exact"):
        parts = [f"scale {row['scale']}"] if float(row["scale"]) != 1 else []
        parts += [f"soft cap {row['softcap']}"] if row["softcap"] else []
        by_transforms.setdefault(", ".join(parts) or "none", []).append(row["model_type"])
    lines = ["| found on the logits | model types |", "|---|---|"]
    for transforms, names in sorted(by_transforms.items(), key=lambda item: -len(item[1])):
        lines.append(f"| {transforms} | {', '.join(names)} |")
    return "\n".join(lines)


def rest_table() -> str:
    """The others, with the reason."""
    lines = ["| model type | | reason |", "|---|---|---|"]
    for row in [row for status in MEANING if status != "exact" for row in with_status(status)]:
        lines.append(f"| {row['model_type']} | {row['status']} | {row['reason'].replace('|', '/')} |")
    return "\n".join(lines)


TABLES = {
    "architectures-summary": summary_table,
    "architectures-exact": exact_table,
    "architectures-rest": rest_table,
}
