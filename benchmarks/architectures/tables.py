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
    """Model type, or one with adapters -> its row of the latest run."""
    rows = read_rows(RESULTS / "architectures.csv")
    last = rows[-1]
    same = ("date", "commit", "transformers")
    return {row["model_type"]: row for row in rows if all(row[key] == last[key] for key in same)}


def bare() -> list[Row]:
    return [row for name, row in newest().items() if not name.endswith("+lora")]


def adapted() -> list[Row]:
    return [row for name, row in newest().items() if name.endswith("+lora")]


def with_status(status: str) -> list[Row]:
    return [row for row in bare() if row["status"] == status]


def summary_table() -> str:
    """How many of each status."""
    rows = bare()
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
    return "\n".join([*lines, "", adapters()])


def adapters() -> str:
    """What became of the models with LoRA, by status."""
    by_status: dict[str, list[str]] = {}
    for row in adapted():
        by_status.setdefault(row["status"], []).append(row["model_type"].removesuffix("+lora"))
    found = "; ".join(f"{status}: {', '.join(names)}" for status, names in by_status.items())
    return f"With LoRA in every linear layer but the head: {found}."


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
