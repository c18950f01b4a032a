"""What the reward tests share: one example, and short ways to score texts."""

from __future__ import annotations

import threading

from gft.data.files import Example
from gft.rewards.pool import RewardPool, Scored

EXAMPLE = Example("p", "42", data_source="src", origin="file.jsonl:1")


def scores(pool: RewardPool, *texts: str, solution: str = "42") -> list[Scored]:
    example = Example("p", solution, data_source="src", origin="file.jsonl:1")
    return pool.score([(text, example) for text in texts], [False] * len(texts))


def values(reward: str, *texts: str, solution: str = "42") -> list[float | None]:
    with RewardPool(reward) as pool:
        return [scored.value for scored in scores(pool, *texts, solution=solution)]


def in_a_thread(function):
    results = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    return results[0]
