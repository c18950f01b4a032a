"""A policy small enough that a whole run takes seconds."""

import pytest

from gft import cli
from gft.demo.base_model import tokenizer, untrained
from gft.policy import make_policy
from gft.rewards.pool import RewardPool


@pytest.fixture
def policy():
    return make_policy(untrained(seed=0).eval(), tokenizer())


@pytest.fixture(scope="session")
def rewards():
    with RewardPool("gft.demo.sort_letters:reward", workers=1) as pool:
        yield pool


@pytest.fixture
def helptext(capsys):
    """What --help of every command prints."""
    for command in ("train", "eval", "sample", "report", "data check"):
        with pytest.raises(SystemExit):
            cli.main([*command.split(), "--help"])
    return capsys.readouterr().out
