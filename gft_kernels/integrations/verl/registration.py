"""What verl is given when it is imported: loss, advantages, head."""

from __future__ import annotations

import functools
from typing import Any

from verl.models.transformers import monkey_patch
from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY, register_adv_est, register_policy_loss
from verl.utils.experimental import torch_functional

from ...losses.objectives import gft
from .config import NAME
from .estimator import advantages
from .head import FusedLinear, VerlsLinear, with_transforms
from .loss import PolicyLossFn, policy_loss
from .transforms import transforms_of

_heads: Any = torch_functional  # the module whose head verl's forwards take anew in every call
_patch: Any = monkey_patch.patch_forward_with_backends
_own_forwards: dict[type, Any] = {}  # of the classes whose forward verl has replaced
_registered: PolicyLossFn | None = None


def install(tau: float = 0.7, head: bool = True) -> None:
    """Register policy loss "gft" and advantage estimator "gft", and take the place of verl's head.

    The entry point calls it with its defaults when verl is imported. Call it again for others, in a
    module that VERL_USE_EXTERNAL_MODULES names, which drivers and workers import with verl.

    Args:
        tau: of `gft(tau)`. `GFTLossConfig` has it in verl's config, which then decides.
        head: `FusedLinear` in place of verl's own, for models with use_fused_kernels=True and
            impl_backend=torch. False leaves verl's, or puts it back.

    Raises:
        ValueError: tau is NaN, or somebody else has registered a "gft".
    """
    global _registered
    loss = policy_loss(gft(tau))
    if POLICY_LOSS_REGISTRY.get(NAME, _registered) is not _registered:
        raise ValueError(f"verl has a policy loss {NAME!r} already, {POLICY_LOSS_REGISTRY[NAME]!r}")
    register_adv_est(NAME)(advantages)
    _registered = register_policy_loss(NAME)(loss)
    _heads.FusedLinearForPPO = FusedLinear if head else VerlsLinear
    monkey_patch.patch_forward_with_backends = _patch_forward if head else _patch


def installed() -> bool:
    return _registered is not None


@functools.wraps(_patch)
def _patch_forward(model: Any, use_fused_kernels: bool = False, fused_kernels_backend: str | None = None) -> None:
    """verl's patch, after a look at what the model's own forward does with its logits."""
    ours = use_fused_kernels and fused_kernels_backend == "torch"
    if ours:
        own = _own_forwards.setdefault(type(model), type(model).forward)
        model._head_transforms = transforms_of(model, own)
    _patch(model, use_fused_kernels, fused_kernels_backend)
    if ours:
        type(model).forward = with_transforms(type(model).forward, own)
