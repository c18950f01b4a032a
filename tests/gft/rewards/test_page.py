"""The table of docs/rewards.md says what the reward "math" does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gft.rewards.calls import call_reward
from gft.rewards.math import math_reward

PAGE = Path(__file__).parents[3] / "docs" / "rewards.md"


def examples():
    table = PAGE.read_text().partition("| | right | wrong | failure |")[2].partition("\n\n")[0]
    for line in table.splitlines()[2:]:
        solution, *columns = (cell.strip() for cell in line.strip("|").split("|"))
        for reward, cell in zip((1, 0, None), columns, strict=True):
            for answer in re.findall("`([^`]+)`", cell):
                yield solution.strip("`"), answer, reward


@pytest.mark.parametrize(("solution", "answer", "reward"), list(examples()))
def test_page_of_rewards_is_true(solution, answer, reward):
    scored = call_reward(math_reward, ("", rf"\boxed{{{answer}}}", solution))
    assert scored.value == reward, scored.error
