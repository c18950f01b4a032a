"""Inputs the ops refuse, each with an error that names the value and the way out."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from gft_kernels import Backend, GroupRewards, Head, cispo, gft, grpo, kl, linear_logprob, linear_policy_loss, reinforce

N, D, V = 6, 4, 9
HIDDEN, WEIGHT, TARGETS, ADVANTAGES = torch.randn(N, D), torch.randn(V, D), torch.arange(N), torch.ones(N)


class DTensor(torch.Tensor):
    """Stands for torch.distributed's sharded tensor, which needs a process group."""


def at(row: int, value: float, like: torch.Tensor = ADVANTAGES) -> torch.Tensor:
    return like.clone().index_fill(0, torch.tensor(row), value)


INPUTS = {
    "hidden is batched": ({"hidden": HIDDEN[None]}, ValueError, r"must be \[N, D\].*flatten"),
    "weight is empty, a ZeRO-3 shard": ({"weight": torch.zeros(0)}, ValueError, "call logits_policy_loss"),
    "weight has no rows": ({"weight": torch.zeros(0, D)}, ValueError, "not empty"),
    "weight is transposed": ({"weight": WEIGHT.T.contiguous()}, ValueError, "last dimension D must agree"),
    "bias has another V": ({"head": Head(bias=torch.zeros(V - 1))}, ValueError, rf"Head.bias has shape \({V - 1},\)"),
    "targets are batched": ({"targets": TARGETS[None]}, ValueError, r"targets has shape \(1, 6\)"),
    "targets are short": ({"targets": TARGETS[1:]}, ValueError, r"targets has shape \(5,\)"),
    "targets are floats": ({"targets": TARGETS.float()}, TypeError, "targets have dtype torch.float32"),
    "targets are bools": ({"targets": TARGETS > 2}, TypeError, "targets have dtype torch.bool"),
    "targets are a list": ({"targets": TARGETS.tolist()}, TypeError, "targets is list"),
    "target is V": (
        {"targets": at(4, V, TARGETS)},
        ValueError,
        rf"targets\[4\] = {V} is outside the vocabulary 0..{V - 1} \(V = {V}",
    ),
    "target is -1": ({"targets": at(2, -1, TARGETS)}, ValueError, r"targets\[2\] = -1 .*1 such rows"),
    "-100 under another ignore_index": (
        {"targets": at(1, -100, TARGETS), "head": Head(ignore_index=-1)},
        ValueError,
        r"targets\[1\] = -100",
    ),
    "hidden is integer": ({"hidden": HIDDEN.long()}, TypeError, "hidden has dtype torch.int64"),
    "weight is complex": ({"weight": WEIGHT.cfloat()}, TypeError, "weight has dtype torch.complex64"),
    "weight is fp8": ({"weight": WEIGHT.to(torch.float8_e4m3fn)}, TypeError, "float8_e4m3fn"),
    "weight on another device": ({"weight": WEIGHT.to("meta")}, ValueError, "weight is on meta but hidden is on cpu"),
    "targets on another device": ({"targets": TARGETS.to("meta")}, ValueError, "targets is on meta"),
    "bias on another device": ({"head": Head(bias=torch.zeros(V, device="meta"))}, ValueError, "Head.bias is on meta"),
    "weight is a DTensor": (
        {"weight": WEIGHT.as_subclass(DTensor)},
        TypeError,
        r"weight is a DTensor.*Partial\('avg'\)\]\).*FSDP2.*VocabularyShard\.of\(weight\)",
    ),
    "hidden is a DTensor": ({"hidden": HIDDEN.as_subclass(DTensor)}, TypeError, r"hidden is a DTensor.*full_tensor"),
    "hidden is a model's output": (
        {"hidden": BaseModelOutput(last_hidden_state=HIDDEN)},
        TypeError,
        "hidden is BaseModelOutput, not a tensor: pass its last_hidden_state",
    ),
    "weight is a layer": (
        {"weight": nn.Linear(D, V)},
        TypeError,
        r"weight is Linear, not a tensor: pass its weight, \[V, D\]",
    ),
    "bias is a list": ({"head": Head(bias=[0.0] * V)}, TypeError, "Head.bias is list, not a tensor"),
    "head is a layer": ({"head": nn.Linear(D, V)}, TypeError, r"head is Linear: give gft_kernels.Head\("),
    "unknown backend": ({"backend": "cuda"}, ValueError, "backend = 'cuda' is unknown.*'eager', 'chunked'"),
}
COMMON = {"hidden": HIDDEN, "weight": WEIGHT, "targets": TARGETS}


@pytest.mark.parametrize(("change", "error", "message"), INPUTS.values(), ids=INPUTS)
def test_linear_logprob_refuses(change, error, message):
    with pytest.raises(error, match=message):
        linear_logprob(**COMMON | change)


PER_TOKEN = {
    "advantages are missing": ({"advantages": None}, ValueError, "needs advantages"),
    "reinforce without advantages": ({"advantages": None, "objective": reinforce()}, ValueError, "needs advantages"),
    "grpo without advantages": ({"advantages": None, "objective": grpo()}, ValueError, "needs advantages"),
    "cispo without advantages": ({"advantages": None, "objective": cispo()}, ValueError, "needs advantages"),
    "kl without a reference": ({"objective": gft() + kl()}, ValueError, "needs ref_logprobs"),
    "advantages per sequence": (
        {"advantages": torch.ones(2)},
        ValueError,
        r"advantages has shape \(2,\).*sequence_ids",
    ),
    "advantages are a number": ({"advantages": 1.0}, TypeError, "advantages is float"),
    "advantages are integers": (
        {"advantages": torch.ones(N, dtype=torch.long)},
        TypeError,
        "advantages has dtype torch.int64",
    ),
    "advantage is NaN": ({"advantages": at(3, torch.nan)}, ValueError, r"advantages\[3\] is NaN \(1 such rows"),
    "old log-prob is NaN": (
        {"objective": grpo(), "old_logprobs": at(5, torch.nan)},
        ValueError,
        r"old_logprobs\[5\] is NaN",
    ),
    "reference is NaN": (
        {"objective": kl(), "ref_logprobs": at(0, torch.nan)},
        ValueError,
        r"ref_logprobs\[0\] is NaN",
    ),
    "weight of a token is NaN": ({"token_weights": at(1, torch.nan)}, ValueError, r"token_weights\[1\] is NaN"),
    "token weights are a mask": ({"token_weights": TARGETS > 2}, TypeError, "token_weights has dtype torch.bool"),
    "advantages on another device": ({"advantages": ADVANTAGES.to("meta")}, ValueError, "advantages is on meta"),
    "reward is NaN": (
        {"advantages": GroupRewards(torch.tensor([0.0, torch.nan]), torch.zeros(2).long(), torch.zeros(N).long())},
        ValueError,
        r"rewards\[1\] = nan",
    ),
    "objective is a name": ({"objective": "grpo"}, TypeError, "objective = 'grpo' is str: give a loss function"),
    "objective is a class": ({"objective": grpo}, TypeError, r"objective = GRPO is a class: call it, grpo\(\)"),
    "objective's number is a tensor": (
        {"objective": gft() + kl(beta=torch.tensor(0.1))},
        TypeError,
        r"KL.beta is a tensor of shape \(\): give a number",
    ),
    "objective is random": (
        {"objective": lambda lp, *, advantages, **_: -lp * advantages * torch.rand_like(lp)},
        ValueError,
        "is random: called twice",
    ),
    "objective returns a scalar": (
        {"objective": lambda lp, **_: -lp.sum()},
        ValueError,
        r"returned \(\); it must return one loss a row",
    ),
    "objective returns nothing": ({"objective": lambda lp, **_: None}, ValueError, "returned NoneType"),
    "objective forgets the log-probs": (
        {"objective": lambda lp, **given: -given["advantages"]},
        ValueError,
        "does not depend on its",
    ),
}


@pytest.mark.parametrize(
    ("change", "error", "message"), [*INPUTS.values(), *PER_TOKEN.values()], ids=[*INPUTS, *PER_TOKEN]
)
def test_linear_policy_loss_refuses(change, error, message):
    with pytest.raises(error, match=message):
        linear_policy_loss(**COMMON | {"advantages": ADVANTAGES} | change)


MIXING = {
    "mean over the rows": lambda lp, **_: -lp * lp.mean(),
    "sum of the rows before": lambda lp, **_: -lp.cumsum(0),
    "sum of the rows after": lambda lp, **_: -lp.flip(0).cumsum(0).flip(0),
    "neighbour": lambda lp, **_: -(lp + lp.roll(1)),
    "inside a sum of objectives": gft() + (lambda lp, **_: -lp * lp.mean()),
}


@pytest.mark.parametrize("backend", ["eager", "chunked"])
@pytest.mark.parametrize("objective", MIXING.values(), ids=MIXING)
def test_linear_policy_loss_refuses_an_objective_that_mixes_rows(objective, backend):
    with pytest.raises(ValueError, match=r"mixes rows.*use linear_logprob"):
        linear_policy_loss(HIDDEN, WEIGHT, TARGETS, ADVANTAGES, objective=objective, backend=backend)


def test_linear_policy_loss_reads_nothing_of_masked_rows():
    targets, poison = at(3, -100, TARGETS), at(3, torch.nan)
    out = linear_policy_loss(
        HIDDEN,
        WEIGHT,
        targets,
        poison,
        token_weights=poison,
        objective=grpo() + kl(),
        old_logprobs=poison,
        ref_logprobs=poison,
    )
    assert out.loss.isfinite()
    assert out.logprobs[3] == out.entropy[3] == out.coefficients[3] == 0


def test_linear_policy_loss_without_validation_trusts_the_data():
    out = linear_policy_loss(HIDDEN, WEIGHT, TARGETS, at(3, torch.nan), backend=Backend(validate=False))
    assert out.loss.isnan()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8], ids=str)
def test_ops_take_any_integer_targets(dtype):
    assert torch.equal(
        linear_logprob(HIDDEN, WEIGHT, TARGETS.to(dtype)).logprobs, linear_logprob(HIDDEN, WEIGHT, TARGETS).logprobs
    )


def test_ops_mask_their_ignore_index():
    other, usual = at(2, -1, TARGETS), at(2, -100, TARGETS)
    got = linear_policy_loss(HIDDEN, WEIGHT, other, ADVANTAGES, head=Head(ignore_index=-1))
    want = linear_policy_loss(HIDDEN, WEIGHT, usual, ADVANTAGES)
    assert got.loss == want.loss
    assert torch.equal(got.logprobs, want.logprobs)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("temperature", x) for x in (0.0, -1.0, torch.inf, torch.nan)),
        *(("softcap", x) for x in (0.0, -30.0, torch.nan)),
        *(("scale", x) for x in (0.0, torch.inf, torch.nan)),
    ],
)
def test_head_refuses(field, value):
    with pytest.raises(ValueError, match=f"Head.{field} = "):
        Head(**{field: value})


@pytest.mark.parametrize("name", ["old_logprobs", "ref_logprobs", "token_weights"])
def test_group_rewards_stand_for_advantages_alone(name):
    groups = GroupRewards(torch.rand(2), torch.zeros(2).long(), torch.zeros(N).long())
    with pytest.raises(TypeError, match=f"{name} is GroupRewards; it must be a tensor"):
        linear_policy_loss(HIDDEN, WEIGHT, TARGETS, ADVANTAGES, **{name: groups})


@pytest.mark.parametrize("backend", ["eager", "chunked", "triton"])
@pytest.mark.parametrize(("rewards", "eps"), [([3e38, 2e38], 1e-6), ([0.0, 1.0], torch.nan)])
def test_group_rewards_without_a_finite_advantage_are_refused(rewards, eps, backend):
    groups = GroupRewards(torch.tensor(rewards), torch.zeros(2).long(), torch.zeros(N).long(), eps=eps)
    with pytest.raises(ValueError, match=r"the advantage of rewards\[0\] = .* is not finite"):
        linear_policy_loss(HIDDEN, WEIGHT, TARGETS, groups, backend=backend)


@pytest.mark.parametrize("value", [0, -5])
def test_backend_refuses(value):
    with pytest.raises(ValueError, match=r"Backend\.chunk_rows = "):
        Backend(chunk_rows=value)
