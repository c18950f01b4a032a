"""A policy small enough that a whole run takes seconds."""

import pytest

from gft.embedded import tokenizer, untrained
from gft.model import make_policy
from gft.rewards import RewardPool


@pytest.fixture
def policy():
    return make_policy(untrained(seed=0).eval(), tokenizer())


@pytest.fixture(scope="session")
def rewards():
    with RewardPool("gft.sort_letters:reward", workers=1) as pool:
        yield pool
