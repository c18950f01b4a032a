"""Layer kernels of Liger in a loaded model: RMSNorm, SwiGLU, rotary positions; the head is ours."""

from __future__ import annotations

import inspect
import os

from transformers import PreTrainedModel


def use_liger(model: PreTrainedModel) -> None:
    """Put Liger's kernels into the model's layers.

    They change transformers' module too: models of the type that are loaded later have them from
    the start, and rotary positions change for all.

    Raises:
        ImportError: Liger is not installed.
        ValueError: it has nothing for the model, or nothing here can run its kernels.
    """
    if model.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError("--liger needs a GPU, and the model is on the CPU: leave it out, or give --device cuda.")
    try:
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN as KINDS
    except ImportError as error:
        raise ImportError(f"--liger needs Liger: pip install 'gft-kernels[liger]' ({error}).") from error
    kind = model.config.model_type
    if kind not in KINDS:
        raise ValueError(f"--liger: Liger has no kernels for the model type {kind}. It has {', '.join(sorted(KINDS))}.")
    apply = KINDS[kind]
    losses = [name for name in inspect.signature(apply).parameters if "cross_entropy" in name]
    apply(model=model, **dict.fromkeys(losses, False))
