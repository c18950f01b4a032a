"""What ranks tell each other, case by case, in two processes that are started once."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor

from gft import distributed
from gft.config import TrainConfig
from gft.demo.base_model import tokenizer
from gft.distributed import agreed, gather, joined, on_first, rank, share, stream_seed, total
from gft.evaluate import evaluate
from gft.optim import make_optimizer, optimizer_step
from gft.parallel import spread, whole_weights
from gft.policy import Policy, make_policy
from gft.rollout import sample

from .ranks import RANKS, ranks
from .scenarios import Lengths, examples, model

PROMPTS = [[5, 6, 7], [8, 9], [10, 11, 12, 13]]


def policy_of(kind: str | None) -> Policy:
    policy = make_policy(model(), tokenizer())
    spread(policy, kind)
    return policy


def fail_on_second(error: Exception) -> Callable[[], tuple[str, str]]:
    """What each rank raises where rank 1 alone has an error."""

    def case() -> tuple[str, str]:
        try:
            with agreed():
                if rank() == 1:
                    raise error
        except Exception as found:
            return type(found).__name__, str(found)
        return "nothing", ""

    return case


def first_fails() -> tuple[str, str]:
    try:
        on_first(lambda: 1 / 0)
    except Exception as found:
        return type(found).__name__, str(found)
    return "nothing", ""


def accuracy(kind: str | None) -> list[float]:
    policy = policy_of(kind)
    with whole_weights(policy.model):
        found = evaluate(policy, examples(lambda place: False)[:5], Lengths(), samples=1, max_new_tokens=4)
    return [found.greedy, found.errors]


def uneven_samples(kind: str | None) -> list[list[int]]:
    """Greedy responses to three prompts on rank 0, and to none elsewhere."""
    policy = policy_of(kind)
    with whole_weights(policy.model):
        found = sample(policy, PROMPTS if rank() == 0 else [], max_new_tokens=4, temperature=0.0, batch=2)
    return [r.tokens for r in found]


def step_with_a_nan_on_one_rank() -> list[bool]:
    """(skipped, whether the weights have changed), of a model whose gradients lie in shares."""
    policy = policy_of("fsdp")
    optimizer = make_optimizer(policy.model, TrainConfig().optim)
    before = [p.to_local().clone() for p in policy.model.parameters() if isinstance(p, DTensor)]
    for p in policy.model.parameters():
        p.grad = torch.zeros_like(p)
    if rank() == 1:
        next(policy.model.parameters()).grad.to_local().fill_(torch.nan)
    row = optimizer_step(policy, optimizer, TrainConfig(), 1, learn=True)
    after = [p.to_local() for p in policy.model.parameters() if isinstance(p, DTensor)]
    return [row["skipped"], any(not a.equal(b) for a, b in zip(before, after, strict=True))]


def stream() -> float:
    torch.manual_seed(stream_seed(7))
    return torch.rand(()).item()


CASES: dict[str, Callable[[], Any]] = {
    "gather": lambda: gather(rank() * 10),
    "total": lambda: total(rank(), 0.5),
    "share": lambda: list(share("abcde")),
    "on_first": lambda: on_first(lambda: f"of {rank()}"),
    "first fails": first_fails,
    "full disk": fail_on_second(OSError("no space")),
    "other error": fail_on_second(KeyError("name")),
    "stream": stream,
    "greedy, ddp": lambda: accuracy("ddp"),
    "greedy, fsdp": lambda: accuracy("fsdp"),
    "uneven samples, fsdp": lambda: uneven_samples("fsdp"),
    "nan": step_with_a_nan_on_one_rank,
    "all come": lambda: distributed.all_come("here"),
    "one comes": lambda: rank() == 1 or distributed.all_come("there"),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, list[Any]]:
    """What each rank found, by case."""
    folder = tmp_path_factory.mktemp("agreements")

    def work(place: int) -> None:
        distributed.REUNION = distributed.timedelta(seconds=0.5)
        with joined("cpu"):
            (folder / f"{place}").write_bytes(pickle.dumps({name: case() for name, case in CASES.items()}))

    for ended in ranks(work, folder):
        assert ended.code == 0, ended.output
    of_ranks = [pickle.loads(Path(folder, str(place)).read_bytes()) for place in range(RANKS)]
    return {name: [of_rank[name] for of_rank in of_ranks] for name in CASES}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gather", [[0, 10]] * 2),
        ("total", [[1, 1.0]] * 2),
        ("share", [["a", "c", "e"], ["b", "d"]]),
        ("on_first", ["of 0"] * 2),
        ("first fails", [("ZeroDivisionError", "division by zero"), ("ElsewhereError", "rank 0: division by zero")]),
        ("full disk", [("ElsewhereOSError", "rank 1: no space"), ("OSError", "no space")]),
        ("other error", [("ElsewhereError", "rank 1: 'name'"), ("KeyError", "'name'")]),
        ("nan", [[True, False]] * 2),
        ("all come", [True] * 2),
        ("one comes", [False, True]),
    ],
)
def test_ranks_find(name, expected, found):
    assert found[name] == expected


def test_every_rank_has_a_random_stream_of_its_own(found):
    assert found["stream"][0] == stream() != found["stream"][1]


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_greedy_accuracy_is_that_of_one_process(kind, found):
    assert found[f"greedy, {kind}"] == [accuracy(None)] * RANKS
    assert accuracy(None)[0] not in (0, 1)


def test_sharded_ranks_sample_as_much_as_they_like(found):
    assert found["uneven samples, fsdp"] == [uneven_samples(None), []]
