"""Folders of runs as `gft train` and `gft eval` leave them, and texts that a page must stand."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from gft.held_out import Answer, answer_log, write_answers

HOSTILE = {
    "script": "</pre><script>alert(1)</script><img src=x onerror=alert(1)>",
    "attribute": '" onmouseover="alert(1)" x=\'',
    "style": "</style><style>body{display:none}</style><link rel=stylesheet href=http://example.invalid/a.css>",
    "backwards": "\u202eesrever\u2066 \u200f\u061c",
    "control": "\0\x01\x1b[31m\x7f\x9f\r\x0b\x0c\ufeff\u2028",
    "surrogate": "half \ud800 of a pair",
    "template": "$style ${title} {mark} %s {{0}}",
    "right to left": "שלום עולם",
    "entities": "&lt;script&gt; &amp; &#x3c;",
    "one long line": "x" * 1_000_000,
    "many lines": "\n" * 5000,
}


def answer(place: int, reward: float | None, **changes: object) -> Answer:
    given = {
        "prompt_id": f"id-{place}",
        "source": "sample",
        "sample": 0,
        "error": None if reward is not None else "the checker failed",
        "truncated": False,
        "prompt": f"prompt {place}",
        "response": f"answer to {place}",
        "solution": "s",
        "tokens": [1, 2],
    }
    return Answer(**given | {"prompt_index": place, "reward": reward} | changes)


def steps(count: int, **more: object) -> list[dict]:
    """Rows of updates."""
    return [
        {
            "step": s,
            "loss": 1 / s,
            "nll": 2.0 + math.sin(s / 9),
            "entropy": 1.0,
            "mean_c": 0.5,
            "rectified_fraction": 0.25,
            "reward_expert": 1.0,
            "reward_self": s / count,
            "grad_norm": 0.1,
            "lr": 1e-4,
            "flat_groups": 0.0,
            **more,
        }
        for s in range(1, count + 1)
    ]


def evaluation(step: int, value: float) -> dict:
    """The row of an evaluation."""
    numbers = {}
    for name in ("greedy", "sampled", "pass_at_1", "pass_at_2"):
        numbers |= {f"eval_{name}": value, f"eval_{name}_low": value - 0.1, f"eval_{name}_high": value + 0.1}
    return {"step": step, **numbers, "eval_errors": 0}


def make_run(
    path: Path,
    rows: Sequence[dict],
    answers: dict[int, list[Answer]] | None = None,
    tail: bytes = b"",
    **config: object,
) -> Path:
    """A run's folder."""
    path.mkdir(parents=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (path / "metrics.jsonl").write_bytes(lines.encode() + tail)
    (path / "run.json").write_text(json.dumps({"config": {"objective": "gft", "steps": 9, **config}}))
    for step, found in (answers or {}).items():
        write_answers(path, step, found, prompts=99)
    return path


def make_evaluation(path: Path, answers: Sequence[Answer]) -> Path:
    """The folder of an evaluation."""
    path.mkdir(parents=True)
    with answer_log(path / "samples.jsonl") as log:
        log.add(answers)
    (path / "eval.json").write_text(json.dumps({"identity": {"samples": 2}, "kl": {"kl_token": [0.5, 0.4, 0.6]}}))
    return path


def hostile_run(path: Path) -> Path:
    """A run whose every text is hostile."""
    answers = [
        answer(i, reward, prompt=text, response=text, solution=text, error=None if reward is not None else text)
        for i, text in enumerate(HOSTILE.values())
        for reward in (1.0, 0.0, None)
    ]
    rows = [evaluation(0, 0.25), *steps(6), evaluation(6, 0.5)]
    return make_run(path, rows, {0: answers, 6: answers}, model=HOSTILE["script"], data=HOSTILE["attribute"])
