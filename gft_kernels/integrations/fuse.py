"""`fuse_loss`: the loss inside the model's own forward, in the place of its head.

    model(input_ids, policy_batch=...)          FusedModel.forward: hands the batch to the head
      the model's own forward                   embeddings, layers, whatever wrappers hooked in
        head(hidden)                            FusedHead.forward: the op, on the weight of this moment
      its result                                thrown away: the head kept what counts
    PolicyLoss                                  made of the very tensor that the head returned

Data-parallel wrappers gather weights and reduce gradients in hooks around the forward of modules,
so a loss is right under them where it is computed there and nowhere else. No weight and no backbone
is kept from one call to the next.

The classes of model and head are exchanged for subclasses, as FSDP2 does it, and not methods of
the instances: those would be the old model's in a copy.
"""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..head import Backend, Head, LogProbs, LowRank, PolicyLoss
from ..ops.linear_logprob import linear_logprob
from ..ops.linear_policy_loss import linear_policy_loss
from .batch import PolicyBatch
from .lora import operands_of
from .packing import loss_arguments, tells_apart
from .parts import find_head
from .probe import find_transforms
from .verify import own_output, run, two_rows, undisturbed, warn_of_terms
from .wrappers import model_inside, refuse_liger


class Fused(NamedTuple):
    """How a model was fused; it is kept on the model."""

    head: Head  # its transforms and the temperature; the bias is the layer's, when it is called
    backend: str | Backend
    tells_apart: bool  # the sequences of a packed row


@dataclass
class Visit:
    """One call of a fused model: what the head is to do, and what it found."""

    fused: Fused
    batch: PolicyBatch
    found: PolicyLoss | LogProbs | None = None
    carrier: Tensor | None = None  # the tensor that the head returned: wrappers have hooks on it


def fuse_loss(
    model: Any, *, temperature: float = 1.0, ignore_index: int = -100, backend: str | Backend = "auto"
) -> Any:
    """Give a transformers causal LM the argument `policy_batch`, a loss in place of logits.

    Equivalent to, for `model(input_ids=ids, policy_batch=PolicyBatch(targets, objective, ...))`::

        logits = model(input_ids=ids).logits[:, :-1] / temperature  # [B, T-1, V], never formed
        log_p = logits.log_softmax(-1)
        logprobs = log_p.gather(2, targets[..., None]).squeeze(2)  # [B, T-1]
        loss = (token_weights * objective(logprobs, ...))[targets != ignore_index].sum()

    Fuse before or after DistributedDataParallel, fully_shard, get_peft_model or torch.compile, and
    before accelerator.prepare. The wrapper is called as ever. Without `policy_batch` the model is
    what it was: it generates, saves, and computes its own loss.

    Args:
        model: a PreTrainedModel with a linear head, also inside those wrappers. PEFT's LoRA on the
            head is taken along as a `LowRank`: no copy of the head's weight is made.
        temperature: the sampling temperature; a batch may bring another.
        ignore_index: the target value that marks a masked token.
        backend: as in `linear_policy_loss`.

    Returns:
        The model itself. A call with a `PolicyBatch` returns PolicyLoss, [B, T-1] each, or LogProbs
        where the batch has no objective. PolicyLoss.aux_loss is what the model's own loss would
        add, router balancing with its coefficient: back-propagate loss + aux_loss.

    Raises:
        TypeError: the head is neither a plain linear layer nor PEFT's LoRA of one (DoRA, LoHa, IA3,
            quantised heads), or a wrapper that is not known.
        ValueError: the model changes its logits in a way that is not known, or sees later tokens.

    A warning names what the model's own loss adds besides, such as a penalty on its log-sum-exp.

    Cost: four forwards of the model on eight tokens, to see its transforms, its own loss, and
    whether it tells packed sequences apart. A call has the cost of the backbone and of
    `linear_policy_loss`; it keeps no cache.
    """
    bare = model_inside(model)
    layer = find_head(bare, inside=True)
    transforms = find_transforms(bare, layer)
    head = replace(transforms, temperature=temperature, ignore_index=ignore_index)
    bare._fused = Fused(head, backend, tells_apart(bare, layer))
    if not isinstance(bare, FusedModel):
        bare.__class__ = _subclass(FusedModel, type(bare))
    _fuse_head(layer)
    _warn_of_terms(bare, layer)
    return model


@torch.no_grad()
def _warn_of_terms(model: Any, layer: nn.Linear) -> None:
    """Say what the model's own loss has besides the NLL and what is returned as aux_loss."""
    tokens = two_rows(layer.out_features, layer.weight.device)
    with undisturbed(model, layer.weight.device):
        output = run(model, "it", lambda: own_output(model, tokens))
    warn_of_terms(model, output, tokens, _aux_loss(model, output))


def _fuse_head(layer: nn.Linear) -> None:
    if not isinstance(layer, FusedHead):
        layer.__class__ = _subclass(FusedHead, type(layer))


class _Exchanged:
    """Objects of an exchanged class are copied and pickled by the class that they had."""

    _had: type

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(protocol)  # of nn.Module: (copyreg.__newobj__, (cls,), state, ...)
        kind = FusedModel if isinstance(self, FusedModel) else FusedHead
        return (_new, (kind, self._had), *reduced[2:])


def _new(kind: type, had: type) -> Any:
    cls = _subclass(kind, had)
    return cls.__new__(cls)


class FusedModel(_Exchanged):
    """A model whose forward takes a `policy_batch`."""

    _fused: Fused
    _names: tuple[str, ...]  # of the arguments of its forward, in order

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "forward":  # accelerate wraps the one there is; Liger goes past it
            refuse_liger(self, value)
        super().__setattr__(name, value)

    def forward(self, *args: Any, policy_batch: PolicyBatch | None = None, **kwargs: Any) -> Any:
        plain: Any = super()
        if policy_batch is None:
            return plain.forward(*args, **kwargs)
        if not isinstance(policy_batch, PolicyBatch):
            raise TypeError(
                f"policy_batch is {type(policy_batch).__name__}: give a PolicyBatch(targets, objective, ...)."
            )
        # Now: embeddings may have been resized since, or an adapter put on the head.
        layer: Any = find_head(self, inside=True)
        _fuse_head(layer)
        kwargs = loss_arguments(self, self._names, args, kwargs, policy_batch)
        visit = layer._visit = Visit(self._fused, policy_batch)
        try:
            output = plain.forward(*args, **kwargs)
        finally:
            layer._visit = None
        if visit.found is None or visit.carrier is None:
            raise TypeError(f"the forward of {type(self).__name__} did not call its head, {type(layer).__name__}.")
        return _result(self, visit.found, visit.carrier, output, policy_batch.targets)


class FusedHead(_Exchanged):
    """A linear head, or PEFT's LoRA of one, that computes the loss where a batch is waiting."""

    _visit: Visit | None = None

    def forward(self, hidden: Tensor, **kwargs: Any) -> Tensor:
        visit = self._visit
        plain: Any = super()
        if visit is None:
            return plain.forward(hidden, **kwargs)
        if kwargs:
            raise TypeError(f"the head is called with {', '.join(kwargs)}, which a loss in its place does not know.")
        if visit.found is not None:
            raise TypeError("the model calls its head more than once in a forward: which of them has the loss?")
        batch = visit.batch
        layer: Any = self
        expected = (batch.targets.shape[0], batch.targets.shape[-1] + 1)
        if tuple(hidden.shape[:-1]) != expected:
            raise ValueError(
                f"the head sees positions of shape {tuple(hidden.shape[:-1])} but PolicyBatch.targets have "
                f"{tuple(batch.targets.shape)}: they must be [B, T-1] for input_ids [B, T], with no "
                "logits_to_keep and no virtual tokens."
            )
        if hasattr(hidden, "placements"):
            raise TypeError(
                "the model's head is tensor-parallel: its hidden states are a DTensor. Call the backbone, and "
                "linear_policy_loss with Head(shard=gft_kernels.parallel.VocabularyShard.of(lm_head.weight)) on "
                "lm_head.weight.to_local(): docs/integrations/vocabulary-parallel.md."
            )
        weight, bias, low_rank = operands_of(layer, hidden)
        if torch.is_autocast_enabled(hidden.device.type):
            dtype = torch.get_autocast_dtype(hidden.device.type)
            hidden, weight = hidden.to(dtype), weight.to(dtype)
            low_rank = low_rank and LowRank(*(x.to(dtype) for x in low_rank))
        settings = visit.fused.head
        temperature = settings.temperature if batch.temperature is None else batch.temperature
        head = replace(settings, bias=bias, temperature=temperature, low_rank=low_rank)
        backend = visit.fused.backend if batch.backend is None else batch.backend
        visit.found = _compute(hidden.flatten(0, 1), weight, batch.rows(head.ignore_index), head, backend)
        visit.carrier = _carrier(visit.found, hidden.shape[:-1])
        return visit.carrier


def _compute(
    hidden: Tensor, weight: Tensor, rows: PolicyBatch, head: Head, backend: str | Backend
) -> PolicyLoss | LogProbs:
    """The op on [B * T] rows."""
    if rows.objective is None:
        return linear_logprob(hidden, weight, rows.targets, head=head, backend=backend)
    return linear_policy_loss(
        hidden,
        weight,
        rows.targets,
        rows.advantages,
        objective=rows.objective,
        token_weights=rows.token_weights,
        old_logprobs=rows.old_logprobs,
        ref_logprobs=rows.ref_logprobs,
        head=head,
        backend=backend,
    )


def _carrier(found: PolicyLoss | LogProbs, shape: torch.Size) -> Tensor:
    """What is differentiable, as logits [., ., .] would be.

    It is a tensor of its own, because hooks on a view may be lost.
    """
    if isinstance(found, PolicyLoss):
        return found.loss.reshape(1, 1, 1).clone()
    return torch.stack([x.view(shape) for x in found], -1)


def _result(
    model: Any, found: PolicyLoss | LogProbs, carrier: Tensor, output: Any, targets: Tensor
) -> PolicyLoss | LogProbs:
    """What the caller sees: [B, T-1] each, differentiable through the carrier."""
    if isinstance(found, LogProbs):
        return LogProbs(*(x[:, :-1] for x in carrier.unbind(-1)))
    vectors = {
        name: getattr(found, name).view(len(targets), -1)[:, :-1] for name in ("logprobs", "entropy", "coefficients")
    }
    return found._replace(loss=carrier.sum(), aux_loss=_aux_loss(model, output), **vectors)


def _aux_loss(model: Any, output: Any) -> Tensor | None:
    """Router balancing, with its coefficient, as the model's own loss adds it."""
    found = getattr(output, "aux_loss", None)
    if not isinstance(found, Tensor):
        return None
    text = getattr(model.config, "get_text_config", lambda: model.config)()
    coefficient = getattr(model, "router_aux_loss_coef", getattr(text, "router_aux_loss_coef", None))
    if coefficient is None:
        raise TypeError(
            f"{type(model).__name__} returns an aux_loss but no router_aux_loss_coef to weight it with: set "
            "output_router_logits=False, or model.router_aux_loss_coef."
        )
    return coefficient * found


_subclasses: dict[tuple[Any, Any], Any] = {}  # one for each class, so that equal classes are one


def _subclass(kind: Any, had: Any) -> Any:
    """`had` with the forward of `kind`, under its own name, which configs and checkpoints have."""
    if (kind, had) in _subclasses:
        return _subclasses[kind, had]
    made: Any = type(had.__name__, (kind, had), {"_had": had, "__module__": had.__module__, "__doc__": had.__doc__})
    made.__qualname__ = had.__qualname__
    if kind is FusedModel:
        made.forward = _with_signature(had.forward)
        made._names = tuple(inspect.signature(had.forward).parameters)[1:]
    _subclasses[kind, had] = made
    return made


def _with_signature(plain: Any) -> Any:
    """FusedModel.forward under the signature of the model's own, for generate() and trainers."""

    @functools.wraps(plain)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return FusedModel.forward(self, *args, **kwargs)

    signature = inspect.signature(plain)
    named = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    rest = [p for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD]
    batch = inspect.Parameter("policy_batch", inspect.Parameter.KEYWORD_ONLY, default=None)
    forward.__signature__ = signature.replace(parameters=[*named, batch, *rest])  # type: ignore[attr-defined]
    return forward
