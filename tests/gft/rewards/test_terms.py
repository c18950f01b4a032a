"""Sums of rewards: how they are written, weighted, and what becomes of a term that fails."""

from __future__ import annotations

import pytest

from gft.data.files import Example
from gft.rewards.pool import RewardPool, Scored, runs_in_workers, usable_cores
from gft.rewards.terms import Term, parse_terms
from gft.rewards.workers import Workers

from . import kinds, orders
from .processes import alive
from .scoring import EXAMPLE, scores

LENGTH, SOME, FAILING = (f"{kinds.__name__}:{name}" for name in ("length", "trl_some", "failing"))


@pytest.mark.parametrize(
    ("reward", "terms"),
    [
        ("math", [Term("math")]),
        (" a.b:c ", [Term("a.b:c")]),
        ("math + 0.1*my.module:brevity", [Term("math"), Term("my.module:brevity", 0.1)]),
        ("math+0.1*m:f", [Term("math"), Term("m:f", 0.1)]),
        ("2 * math - 1e-3 * m:f", [Term("math", 2.0), Term("m:f", -0.001)]),
        ("-math + exact", [Term("math", -1.0), Term("exact")]),
    ],
)
def test_parse_terms_reads_sums(reward, terms):
    assert parse_terms(reward) == terms


@pytest.mark.parametrize(
    ("reward", "words"),
    [
        ("", "reward = '' cannot be read from '' on"),
        ("math +", r"reward = 'math \+' cannot be read from '\+' on"),
        ("math exact", "cannot be read from 'exact' on"),
        ("math, exact", "cannot be read from ', exact' on"),
        ("math + + exact", "cannot be read from"),
        ("0.1 math", "reward = '0.1' is unknown"),
        ("math*0.1", "'0.1' is unknown"),
        ("maths", "reward = 'maths' is unknown: choose 'exact', 'number', 'math' or 'package.module:function'"),
        ("nan*math", "the weight of 'math' is 'nan': give a number in front that is finite and not 0"),
        ("0*math", "the weight of 'math' is '0'"),
        ("1e999*math", "the weight of 'math' is '1e999'"),
        ("math + 0.1*math", "has 'math' twice"),
        ("math + 2**m:f", "'2' is unknown"),
        ("m:f()", r"cannot be read from '\(\)' on"),
    ],
)
def test_parse_terms_refuses_nonsense_with_its_text(reward, words):
    with pytest.raises(ValueError, match=words):
        parse_terms(reward)


def test_runs_in_workers_if_any_term_does():
    assert not runs_in_workers("number")
    assert not runs_in_workers("exact + number")
    assert runs_in_workers("math")
    assert runs_in_workers("number + m:f")


def test_usable_cores_are_those_of_this_process(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {3, 5, 7}, raising=False)
    assert usable_cores() == 3
    started = []
    monkeypatch.setattr("gft.rewards.pool.Workers", lambda target, count, limits: started.append(count))
    RewardPool("math")
    RewardPool("math", workers=2)
    assert started == [3, 2]


def test_score_adds_the_terms_by_their_weights_and_keeps_each():
    with RewardPool(f"number - 0.25*{LENGTH}", workers=1) as pool:
        assert scores(pool, "#### 42", "#### 41") == [
            Scored(1 - 0.25 * 7, None, {"number": 1.0, LENGTH: 7.0}),
            Scored(-0.25 * 7, None, {"number": 0.0, LENGTH: 7.0}),
        ]
        cut = pool.score([("#### 42", EXAMPLE)], [True])  # built-in rewards alone see nothing of a cut one
        assert cut == [Scored(-0.25 * 7, None, {"number": 0.0, LENGTH: 7.0})]


def test_score_of_one_reward_has_no_parts():
    with RewardPool("2*number") as pool:
        assert scores(pool, "#### 42") == [Scored(2.0, None)]


def test_score_leaves_out_what_does_not_apply():
    with RewardPool(f"number + 10*{SOME}", workers=1) as pool:
        right, short = pool.score([("#### 42", EXAMPLE), ("42", EXAMPLE)], [False, False])
    assert right == Scored(11.0, None, {"number": 1.0, SOME: 1.0})
    assert short == Scored(0.0, None, {"number": 0.0})


def test_score_of_a_response_whose_one_term_failed_is_a_failure_of_that_name():
    with RewardPool(f"number + {FAILING}", workers=1) as pool:
        for scored in scores(pool, "#### 42", "#### 42"):
            assert scored.value is None
            assert scored.error.startswith(f"{FAILING}: KeyError: 'boom' (kinds.py:")
        unsolved = pool.score([("", Example("p", "", origin="f:9"))], [False])
        assert unsolved[0].error == "number: f:9: there is no solution to compare with"
        assert (pool.calls, pool.errors) == (3, 3)
        assert len(pool.untold) == 3


def test_score_refuses_a_sum_beyond_all_numbers():
    with RewardPool(f"1e308*{orders.NAME} + number", workers=1) as pool:
        (scored,) = scores(pool, "value 1e10")
    assert scored.value is None
    assert "is inf, not a finite number" in scored.error


def test_reward_pool_of_a_sum_closes_what_it_began(monkeypatch):
    started, close = [], Workers.close
    monkeypatch.setattr(Workers, "close", lambda self: (started.extend(self._workers), close(self)))
    with pytest.raises(ValueError, match="no_such_module"):
        RewardPool(f"{LENGTH} + no_such_module:f", workers=1)
    assert len(started) == 2
    assert not any(alive(worker.process.pid) for worker in started)
