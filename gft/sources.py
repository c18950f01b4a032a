"""Means of a step by the source of a response: expert, teacher or self."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor

from gft_kernels import PolicyLoss
from gft_kernels.losses.objectives import DFT, GFT, LossFunction, terms

from .collate import Rows
from .data.files import Source
from .groups import Member

SOURCES = get_args(Source)


@torch.no_grad()
def means_by_source(
    result: PolicyLoss, objective: LossFunction, members: Sequence[Member], rows: Rows, extra: dict[str, Tensor]
) -> dict[str, tuple[float, float]]:
    """("nll_self" -> (mean, number of tokens)) over the tokens that the head saw.

    Besides the NLL and the entropy there are what DFT and GFT report, C(p) and the share of
    rectified tokens. `extra` has values of tokens [B, T-1] that are not split by source, NaN where
    there is none.

    Cost: one wait for the device.
    """
    logprobs = result.logprobs
    vectors = {"nll": -logprobs, "entropy": result.entropy}
    for term in terms(objective):
        if isinstance(term, (GFT, DFT)):
            vectors |= term.metrics(logprobs, tau=getattr(term, "tau", None))
    seen = rows.trained & ~logprobs.isnan()  # the head skips tokens without a weight
    source = rows.spread([SOURCES.index(m.source) for m in members])
    masks = {name: seen & (source == code) for code, name in enumerate(SOURCES)}
    wanted = {f"{of}_{name}": (x, mask) for name, mask in masks.items() for of, x in vectors.items()}
    wanted |= {name: (x, seen & ~x.isnan()) for name, x in extra.items()}
    sums = [(torch.where(mask, x, 0).sum(), mask.sum()) for x, mask in wanted.values()]
    found = torch.stack([torch.stack([total.double(), count.double()]) for total, count in sums]).tolist()
    return {name: (total / count, count) for name, (total, count) in zip(wanted, found, strict=True) if count}
