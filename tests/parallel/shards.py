"""What ranks that share a vocabulary compute, against the whole head in one process."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gft_kernels import (
    Backend,
    GroupRewards,
    Head,
    LowRank,
    cispo,
    dft,
    gft,
    grpo,
    gspo,
    kl,
    linear_logprob,
    linear_policy_loss,
    reinforce,
    sft,
    token_weights,
)
from gft_kernels.parallel import VocabularyShard

from ..helpers.cases import TRANSFORMS, inputs_of
from ..helpers.problems import Problem, away_from_tau, make_problem

N, D, V = 37, 12, 61
TAU = 0.3
# By layout: the ranks of the group, and the rows of each, in the vocabulary's order.
LAYOUTS = {
    "two": {0: 50, 1: 11},
    "two of three, the later rank first": {2: 9, 1: 52},
    "three, without targets on the last": {1: 2, 0: 41, 2: 18},
}
TWO, LATER_FIRST, THREE = LAYOUTS
TAUS = torch.tensor([0.0, TAU, 2.0])[torch.arange(N) % 3]  # [N]
OBJECTIVES: dict[str, Any] = {
    "sft": sft(),
    "dft": dft(),
    "gft": gft(TAU),
    "reinforce": reinforce(),
    "grpo": grpo(),
    "cispo": cispo(),
    "grpo and kl": grpo() + kl(0.1),
    "grpo and corrected kl": grpo() + kl(0.1, corrected=True),
    "gft with a tau for every token": gft(TAUS),
    "own": lambda logprobs, advantages, **_: -advantages * logprobs.exp() * logprobs,
}
SEQUENCES = torch.arange(N) % 5
OBJECTIVES["gspo and corrected kl"] = gspo(0.05, 0.1, sequence_ids=SEQUENCES) + kl(
    0.1, corrected=True, sequence_ids=SEQUENCES
)
OBJECTIVES["a sum of three"] = gft(TAUS) + kl(0.1, clamp=0.05, corrected=True) + OBJECTIVES["own"]
QUICK = (
    "sft",
    "gft",
    "grpo and corrected kl",
    "gft with a tau for every token",
    "gspo and corrected kl",
    "a sum of three",
)
Case = tuple[str, str, str, str]  # engine, layout, dtype, what is called
DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LEAVES = ("hidden", "weight", "bias")
ALL = " ".join(LEAVES)


@functools.cache
def problem_of(dtype: torch.dtype, transform: str = "plain") -> Problem:
    problem = make_problem(N, D, V, dtype=dtype)
    held = V - LAYOUTS[THREE][2]
    targets = torch.where(problem.targets < 0, -100, problem.targets % held)
    targets[-4:] = torch.tensor([1, 2, 8, 9])  # on both sides of borders
    return away_from_tau(problem._replace(targets=targets), TAU, 0.02, **TRANSFORMS[transform])


@functools.cache
def group_of(layout: str) -> dist.ProcessGroup:
    """Made by all processes, in the same order."""
    return dist.new_group(sorted(LAYOUTS[layout]))


def part_of(layout: str) -> slice | None:
    """The rows of this rank, None where the group does not hold it."""
    start = 0
    for rank, rows in LAYOUTS[layout].items():
        if rank == dist.get_rank():
            return slice(start, start + rows)
        start += rows
    return None


Op = Callable[[Tensor, Tensor, Tensor, Head, Backend], tuple[Tensor, dict[str, Tensor]]]


def fused(problem: Problem, objective: Any, advantages: Any = None, weights: Tensor | None = None) -> Op:
    def run(hidden: Tensor, weight: Tensor, targets: Tensor, head: Head, backend: Backend) -> Any:
        given = problem.advantages if advantages is None else advantages
        kwargs = {"objective": objective, "head": head, "backend": backend, "token_weights": weights}
        kwargs |= inputs_of(problem)
        found = linear_policy_loss(hidden, weight, targets, given, **kwargs)
        rows = {"logprobs": found.logprobs, "entropy": found.entropy, "coefficients": found.coefficients}
        return found.loss, {"loss": found.loss, **rows, **found.stats}

    return run


def loss(objective: Any, advantages: Any = None) -> Callable[..., Op]:
    return functools.partial(fused, objective=objective, advantages=advantages)


def low_rank(problem: Problem) -> Op:
    """The last columns of hidden and weight as the factors of a low-rank addition."""
    op, size = fused(problem, gft(TAU)), D - 5

    def run(hidden: Tensor, weight: Tensor, targets: Tensor, head: Head, backend: Backend) -> Any:
        low = LowRank(hidden[:, size:], weight[:, size:])
        return op(hidden[:, :size], weight[:, :size], targets, replace(head, low_rank=low), backend)

    return run


def scored(problem: Problem, on_entropy: float) -> Op:
    def run(hidden: Tensor, weight: Tensor, targets: Tensor, head: Head, backend: Backend) -> Any:
        found = linear_logprob(hidden, weight, targets, head=head, backend=backend)
        loss = (problem.advantages * found.logprobs).sum()
        if on_entropy:
            loss = loss + on_entropy * (problem.old_logprobs * found.entropy).sum()
        return loss, found._asdict()

    return run


def answers(problem: Problem, op: Op, head: Head, backend: Backend, at: slice, needs: str) -> dict[str, Tensor]:
    """What the op reports, and the gradients, with the rows `at` of the weight."""
    leaves = {name: getattr(problem, name).clone().requires_grad_(name in needs) for name in LEAVES}
    hidden, weight, bias = leaves.values()
    loss, found = op(hidden, weight[at], problem.targets, replace(head, bias=bias[at]), backend)
    twice = backend.name == "chunked"  # a further backward runs the pass again
    if needs:
        for last in (False, True) if twice else (True,):
            loss.backward(retain_graph=not last)
    grads = {f"d{name}": x.grad / (1 + twice) for name, x in leaves.items() if x.requires_grad}
    for name in grads.keys() - {"dhidden"}:
        grads[name] = grads[name][at]
    return {name: x.detach() for name, x in found.items()} | grads


def error(got: Tensor, want: Tensor) -> float:
    """The largest error relative to the largest entry. What is not finite must be the same."""
    got, want = got.double(), want.double()
    odd = ~want.isfinite()
    assert torch.equal(got[odd].nan_to_num(7), want[odd].nan_to_num(7)), "NaN or infinite elsewhere"
    got, want = got[~odd], want[~odd]
    return float((got - want).abs().max() / want.abs().max().clamp(min=1e-9)) if want.numel() else 0.0


def errors(layout: str, problem: Problem, op: Op, head: Head, backend: Backend, needs: str) -> dict[str, float] | None:
    """The error of everything that a rank's shard gives, by name."""
    at, group = part_of(layout), group_of(layout)
    if at is None:
        return None
    whole = answers(problem, op, head, replace(backend, name="chunked"), slice(None), needs)
    whole |= {name: whole[name][at] for name in ("dweight", "dbias") if name in whole}
    shard = VocabularyShard(at.start, V, group)
    found = answers(problem, op, replace(head, shard=shard), backend, at, needs)
    assert found.keys() == whole.keys()
    return {name: error(found[name], whole[name]) for name in found}


def banned(problem: Problem) -> Problem:
    """A bias of minus infinity over all columns of a rank."""
    held = LAYOUTS[THREE]
    return problem._replace(bias=problem.bias.index_fill(0, torch.arange(V - held[2], V), -torch.inf))


def remote(problem: Problem) -> Problem:
    """Rows whose target is thousands of nats below the best columns, which are two, ranks apart."""
    hidden, weight = problem.hidden.clone(), problem.weight.clone()
    hidden[::4] *= 4000
    weight[31:] = weight[: V - 31]
    return problem._replace(hidden=hidden, weight=weight)


def masked(problem: Problem) -> Problem:
    return problem._replace(targets=torch.full_like(problem.targets, -100))


def rewarded() -> Any:
    """Three groups of two responses, one without spread."""
    rewards = torch.tensor([1.0, 0.0, 0.1, 0.1, 0.3, 0.9])
    return GroupRewards(rewards, torch.arange(6) // 2, torch.arange(N) % 6)


def counted(problem: Problem, objective: Any) -> Op:
    """Means of sequences, in a step that has more of them than this call."""
    ids = problem.sequence_ids
    weights = token_weights("seq-mean-token-mean", problem.targets != -100, ids, num_sequences=9)
    return fused(problem, objective, weights=weights.index_fill(0, (ids == 2).nonzero().squeeze(1), 0))


def cases(asked: Collection[tuple[str, str, str]]) -> dict[Case, Callable[[], object]]:
    """The cases of the asked combinations of engine, layout and dtype."""
    list(map(group_of, LAYOUTS))  # by all processes, in the same order
    found: dict[Case, Callable[[], object]] = {}

    def add(
        name: str, transform: str, op: Callable[..., Op], change: Any = lambda x: x, needs: str = ALL, **kwargs: Any
    ) -> None:
        for engine, layout, dtype in runs:
            problem = change(problem_of(DTYPES[dtype], transform))
            head, backend = Head(**TRANSFORMS[transform]), Backend(engine, **{"chunk_rows": 16} | kwargs)
            call = functools.partial(errors, layout, problem, op(problem), head, backend, needs)
            found[engine, layout, dtype, f"{name}, {transform}"] = call

    scores, both = (functools.partial(scored, on_entropy=x) for x in (0.0, 0.3))
    runs = [("chunked", layout, dtype) for layout in LAYOUTS for dtype in ("fp64", "fp32")]
    for name, objective in OBJECTIVES.items():
        add(name, "all", loss(objective))
    add("log p and entropy", "plain", both)
    add("gft, low rank", "all", low_rank)
    runs = [run for run in runs if run[1] != LATER_FIRST]
    for transform in TRANSFORMS:
        add("gft of every row", transform, loss(gft(TAU)), skip_rows=False)
        add("log p", transform, scores)
        add("log p and entropy", transform, both)
    add("gft of rewards", "plain", loss(gft(TAU), rewarded()))
    add("gft of counted weights", "plain", functools.partial(counted, objective=gft(TAU)))
    add("gft in one chunk", "plain", loss(gft(TAU)), chunk_rows=None)
    everywhere, runs = runs, [("chunked", THREE, "fp64")]
    for needs in ("hidden", "weight", "bias", ""):
        for transform in ("plain", "gemma"):
            add(f"gft for gradients of {needs or 'nothing'}", transform, loss(gft(TAU)), needs=needs)
            add(f"log p and entropy for gradients of {needs or 'nothing'}", transform, both, needs=needs)
    runs = everywhere
    for change in (banned, masked, remote):
        if change is remote:  # fp32 rounds logits of thousands by 1e-3, in one process too
            runs = [run for run in runs if run[2] == "fp64"]
        add(f"sft, {change.__name__}", "plain", loss(sft()), change)
        add(f"log p and entropy, {change.__name__}", "plain", both, change)

    # Under the interpreter: seconds, so each thing once.
    for (name, objective), transform in zip(OBJECTIVES.items(), itertools.cycle(TRANSFORMS), strict=False):
        runs = [("triton", TWO, "fp64" if name in QUICK else "fp32")]
        add(name, transform, loss(objective), chunk_rows=None)
    runs = [("triton", THREE, "fp64")]
    add("gft of rewards", "plain", loss(gft(TAU), rewarded()), chunk_rows=None)
    add("log p", "granite", scores)
    add("gft, low rank", "all", low_rank)
    add("log p and entropy", "all", both)
    add("gft of every row, banned", "plain", loss(gft(TAU)), banned, skip_rows=False)
    add("gft of every row, remote", "plain", loss(gft(TAU)), remote, skip_rows=False, chunk_rows=None)
    for needs in ("weight", ""):
        add(f"gft for gradients of {needs or 'nothing'}", "plain", loss(gft(TAU)), needs=needs, chunk_rows=None)
    runs = [("chunked", TWO, "bf16")]
    add("gft", "all", loss(gft(TAU)))
    add("log p and entropy", "plain", both)
    runs = [("triton", layout, dtype) for layout, dtype in zip(LAYOUTS, ("fp32", "fp32", "fp16"), strict=True)]
    add("gft", "all", loss(gft(TAU)), chunk_rows=None)
    add("log p", "plain", scores)
    return {case: call for case, call in found.items() if case[:3] in asked}
