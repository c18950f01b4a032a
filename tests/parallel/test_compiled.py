"""A compiled program with a shard: the op runs between two graphs, and one graph is refused."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from gft_kernels import Head, LinearPolicyLoss, gft, linear_logprob
from gft_kernels.parallel import VocabularyShard, gather_rows

pytestmark = pytest.mark.usefixtures("plain_memory")

HIDDEN, WEIGHT, TARGETS = torch.randn(6, 4), torch.randn(9, 4), torch.arange(6)
HEAD = Head(softcap=2.0, shard=VocabularyShard(0, 9))
LOSS = LinearPolicyLoss(gft(0.1), head=HEAD)


@pytest.fixture
def one_rank() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def loss(hidden: Tensor, weight: Tensor) -> Tensor:
    return 2 * LOSS((3 * hidden).tanh(), weight, TARGETS, hidden.sum(1)).loss


def scores(hidden: Tensor, weight: Tensor) -> Tensor:
    found = linear_logprob((3 * hidden).tanh(), weight, TARGETS, head=HEAD)
    return (found.logprobs + 0.3 * found.entropy).square().sum()


def gathered(hidden: Tensor, weight: Tensor) -> Tensor:
    rows, targets, sums = gather_rows((3 * hidden).tanh(), TARGETS, hidden.sum(1), reduce="sum")
    return ((rows @ weight.T)[torch.arange(6), targets] * sums).sum()


PROGRAMS = (loss, scores, gathered)


@pytest.mark.parametrize("program", PROGRAMS)
def test_compiled_program_has_the_bits_of_the_program(program, one_rank):
    graphs = CompileCounterWithBackend("eager")
    torch._dynamo.reset()
    found = []
    for run in (program, torch.compile(program, backend=graphs)):
        leaves = [x.clone().requires_grad_() for x in (HIDDEN, WEIGHT)]
        result = run(*leaves)
        found.append([result.detach(), *torch.autograd.grad(result, leaves)])
    assert all(map(torch.equal, *found))
    # The tanh, the token weights, and what is made of the result. No piece of the op is compiled.
    assert 1 <= graphs.frame_count <= 3


@pytest.mark.parametrize("program", PROGRAMS)
def test_one_graph_is_refused_by_name(program):
    name = "gather_rows" if program is gathered else "Head.shard"
    torch._dynamo.reset()
    with pytest.raises(RuntimeError, match=f"{name} needs fullgraph=False"):
        torch.compile(program, backend="eager", fullgraph=True)(HIDDEN, WEIGHT)
