"""The head of verl's fused forward: log-probs and entropies, of the model as it is.

verl's fused forwards make their head anew in every call, hand it `lm_head.weight` and tell it
nothing else of the model. So the model whose forward runs is left where the head finds it, and the
head computes inside the forward of `lm_head`: FSDP2 gathers the weight in hooks around that, and
reduces its gradient there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from verl.utils.experimental import torch_functional

from ...head import PLAIN, Backend, Head, LogProbs
from ...ops.linear_logprob import linear_logprob
from .transforms import WAY_OUT


class Running(NamedTuple):
    """The model whose forward runs."""

    layer: nn.Linear
    transforms: Head


_running: ContextVar[Running | None] = ContextVar("the model whose fused forward runs", default=None)


VerlsLinear: Any = torch_functional.FusedLinearForPPO


class FusedLinear(VerlsLinear):
    """verl's FusedLinearForPPO with the model's bias, scale and soft cap, and without the logits.

    Equivalent to, in the fused forward of a model::

        logits = lm_head(hidden_states)  # then the model's own scale and soft cap
        log_p = (logits / temperature).log_softmax(-1)
        log_probs = log_p.gather(-1, input_ids[..., None]).squeeze(-1)
        entropy = -(log_p.exp() * log_p).sum(-1)

    Called by itself it has the weight it is given, and no transforms.

    Args:
        chunk_size: rows at a time. None lets the engine choose.
        impl_backend: "torch" is computed here, "liger" by verl as before.

    Cost: that of `linear_logprob`. No gradient of the weight is formed where it is frozen.
    """

    def __init__(self, chunk_size: int | None = None, impl_backend: str = "torch") -> None:
        super().__init__(*(() if chunk_size is None else (chunk_size,)), impl_backend=impl_backend)
        self.backend = Backend(chunk_rows=chunk_size)

    def forward(
        self,
        hidden_states: Tensor,  # [..., D]
        vocab_weights: Tensor,  # [V, D]
        input_ids: Tensor,  # [...]
        temperature: float = 1.0,
    ) -> tuple[Tensor, Tensor]:  # [...] each, fp32
        """Log-prob of each of `input_ids`, and the entropy, at a temperature."""
        if self.impl_backend != "torch":
            return super().forward(hidden_states, vocab_weights, input_ids, temperature)
        running = _running.get()
        transforms = PLAIN if running is None else running.transforms
        head = replace(transforms, temperature=float(temperature))
        targets = input_ids.flatten().long()

        def compute(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> LogProbs:
            return _log_probs(hidden, weight, targets, replace(head, bias=bias), self.backend)

        if running is None:
            found = compute(hidden_states.flatten(0, -2), vocab_weights, None)
        else:
            found = _inside(running.layer, compute, hidden_states.flatten(0, -2))
        # No views: FSDP2 warns of hooks that an operation in place on one would lose.
        log_probs, entropy = (x.view(input_ids.shape).clone() for x in found)
        return log_probs, entropy


def with_transforms(forward: Callable[..., Any], own: Callable[..., Any]) -> Callable[..., Any]:
    """A fused forward of verl during which the head knows the model.

    verl puts it on the class: models of it that are not fused get their `own` forward.
    """

    @functools.wraps(forward)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        if "_head_transforms" not in vars(self):
            return own(self, *args, **kwargs)
        with _run(Running(_linear(self), self._head_transforms)):
            return forward(self, *args, **kwargs)

    return wrapped


@contextmanager
def _run(running: Running) -> Iterator[None]:
    token = _running.set(running)
    try:
        yield
    finally:
        _running.reset(token)


def _inside(layer: Any, compute: Callable[..., LogProbs], hidden: Tensor) -> LogProbs:
    """`compute` in place of the layer's forward, on the weight that the hooks around it leave."""

    def forward(hidden: Tensor) -> LogProbs:
        return compute(hidden, layer.weight, layer.bias)

    layer.forward = forward  # of this instance, for this call
    try:
        return layer(hidden)
    finally:
        del layer.forward


def _log_probs(hidden: Tensor, weight: Tensor, targets: Tensor, head: Head, backend: Backend) -> LogProbs:
    if torch.is_autocast_enabled(hidden.device.type):  # as verl's own products would be
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    return linear_logprob(hidden, weight, targets, head=head, backend=backend)


def _linear(model: Any) -> nn.Linear:
    """The model's head as it is now: an adapter may have been put on it since."""
    layer = model.lm_head
    # A sharding wrapper puts a subclass there, which leaves the forward as it was.
    if isinstance(layer, nn.Linear) and type(layer).forward is nn.Linear.forward and "forward" not in vars(layer):
        return layer
    raise TypeError(
        f"the head of {type(model).__name__} is {type(layer).__module__}.{type(layer).__name__}, and verl's fused "
        f"forward takes its weight alone: leave lm_head out of target_modules, or {WAY_OUT}."
    )
