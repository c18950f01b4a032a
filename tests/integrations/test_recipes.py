"""The recipes run as they stand on the page, on stand-ins with their libraries' signatures."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from transformers import Seq2SeqTrainer

from ..docs.test_pages import ROOT, blocks

PAGE = ROOT / "docs" / "integrations" / "recipes.md"


def recipe(word: str) -> str:
    (found,) = [block for block in blocks(PAGE, "py") if word in block]
    return found


@pytest.fixture
def stand_in(monkeypatch):
    """Makes a module of that name, and its parents."""

    def make(name: str, **contents: object) -> ModuleType:
        parts = name.split(".")
        modules = [ModuleType(".".join(parts[: i + 1])) for i in range(len(parts))]
        for module in modules:
            module = sys.modules.get(module.__name__, module)
            monkeypatch.setitem(sys.modules, module.__name__, module)
            parent, _, child = module.__name__.rpartition(".")
            if parent:
                setattr(sys.modules[parent], child, module)
        vars(sys.modules[name]).update(contents)
        return sys.modules[name]

    return make


def test_llama_factory_trains_on_the_fused_loss(stand_in):
    class CustomSeq2SeqTrainer(Seq2SeqTrainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            return super().compute_loss(model, inputs, *args, **kwargs)

    workflow = stand_in("llamafactory.train.sft.workflow", CustomSeq2SeqTrainer=CustomSeq2SeqTrainer)
    ran = []
    stand_in("llamafactory.train.tuner", run_exp=lambda: ran.append(True))
    exec(recipe("llamafactory"), {"__name__": "__main__"})
    order = [kind.__name__ for kind in workflow.CustomSeq2SeqTrainer.__mro__]
    # LLaMA-Factory's class, then transformers' for sequences, then the loss, then transformers'.
    assert order[1:5] == ["CustomSeq2SeqTrainer", "Seq2SeqTrainer", "PolicyLossTrainer", "Trainer"]
    assert ran


class PolicyLoss(torch.nn.Module):
    """The arguments of OpenRLHF's, and five results."""

    token_level_loss, policy_loss_type, is_correction_level = True, "ppo", "off"

    def forward(
        self, log_probs, old_log_probs, advantages, action_mask=None, rollout_log_probs=None, dp_size=1,
        batch_num_tokens=None, global_batch_size=None,
    ):  # fmt: skip
        return torch.tensor(9.0), (log_probs - old_log_probs).mean(), torch.tensor(2.0), None, None


def aggregate_loss(
    loss, loss_mask, token_level_loss=True, dp_size=1, batch_num_tokens=None, global_batch_size=None
):  # its token mode
    assert token_level_loss
    return (loss * loss_mask).sum() / batch_num_tokens * dp_size


def test_openrlhf_computes_the_formula(stand_in):
    stand_in("openrlhf.models", PolicyLoss=PolicyLoss, aggregate_loss=aggregate_loss)
    session = {"__name__": "policy_losses"}
    exec(recipe("openrlhf"), session)
    logprobs = (-2 * torch.rand(2, 5, dtype=torch.float64)).requires_grad_()
    advantages, mask = torch.randn(2, 5, dtype=torch.float64), torch.arange(10).view(2, 5) % 4 > 0
    counts = {"dp_size": 2, "batch_num_tokens": 11.0, "global_batch_size": 3.0}
    made = session["GFTLoss"]()
    loss, ratio, kl, *rest = made(logprobs, logprobs.detach() - 1, advantages, action_mask=mask, **counts)
    p = logprobs.exp().detach()
    expected = (-advantages * torch.where(p < 0.7, p, 1.0) * logprobs)[mask].sum() / 11 * 2
    torch.testing.assert_close(loss, expected)
    (got,), (want,) = (torch.autograd.grad(x, logprobs) for x in (loss, expected))
    torch.testing.assert_close(got, want)
    assert not ratio.requires_grad
    assert (ratio.item(), kl.item(), rest) == (pytest.approx(1.0), 2.0, [None, None])
    made.is_correction_level = "token"
    with pytest.raises(ValueError, match="is_correction_level"):
        made(logprobs, logprobs.detach(), advantages, action_mask=mask, **counts)
