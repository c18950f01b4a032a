"""What every engine is tried with: backends, transforms of a head, reductions."""

from __future__ import annotations

from torch import Tensor

from .problems import Problem

BACKENDS = ("eager", "chunked", "triton")
TRANSFORMS = {
    "plain": {},
    "cool": {"temperature": 0.6},
    "granite": {"scale": 0.125, "temperature": 1.3},
    "gemma": {"softcap": 3.0},  # low enough to bend most logits
    "all": {"scale": 1.5, "softcap": 4.0, "temperature": 0.8},
}
REDUCTIONS = ("token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm", "sum")


def inputs_of(problem: Problem) -> dict[str, Tensor]:
    """Old and reference log-probs of a problem, by the names that the ops give them."""
    return {"old_logprobs": problem.old_logprobs, "ref_logprobs": problem.ref_logprobs}
