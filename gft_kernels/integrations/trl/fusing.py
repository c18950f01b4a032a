"""`fuse_loss` on the model of a TRL trainer, beneath the forward that TRL has put on it."""

from __future__ import annotations

import functools
import types
from typing import Any

from ...head import Backend
from ..fuse import fuse_loss


def fuse_trainer(trainer: Any, temperature: float, backend: str | Backend) -> None:
    """Give the trainer's model the argument `policy_batch`.

    TRL's own forward stays for what TRL computes with it: old and reference log-probs, generation.

    Raises:
        TypeError, ValueError: the model cannot be fused, as `fuse_loss` says.
    """
    model = trainer.model
    inside = model.get_base_model() if hasattr(model, "peft_config") else model
    if hasattr(inside, "_hf_hook"):
        raise TypeError(
            f"accelerate has put hooks on {type(inside).__name__}, as it does for a device_map over several devices: "
            "load the model onto one device."
        )
    trls = vars(inside).pop("forward")
    fuse_loss(model, temperature=temperature, backend=backend)

    @functools.wraps(trls.__func__)
    def forward(self: Any, *args: Any, policy_batch: Any = None, **kwargs: Any) -> Any:
        if policy_batch is None:
            return trls.__func__(self, *args, **kwargs)
        return type(self).forward(self, *args, policy_batch=policy_batch, **kwargs)

    inside.forward = types.MethodType(forward, inside)
    if trainer.aux_loss_enabled:
        inside.router_aux_loss_coef = trainer.router_aux_loss_coef  # a fused forward reads it there
