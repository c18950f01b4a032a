"""LoRA: small factors beside frozen weights are trained, by PEFT.

    y = x W^T + (alpha / r) x A^T B^T     W [out, in] is frozen; A [r, in] and B [out, r] are trained

B begins at 0, so the first step's policy is the model in the folder. PEFT puts its layers into the
model itself, which stays the transformers model that it was for everybody else.
"""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from ..settings.parts import ModelConfig

WEIGHTS = "adapter_model.safetensors"


def add_lora(model: PreTrainedModel, config: ModelConfig, seed: int) -> Any:
    """Freeze the model and put factors beside its layers; returns PEFT's view of it.

    Raises:
        ValueError: a target that the model lacks, or one that is no linear layer.
        ImportError: PEFT is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
        from peft.tuners.lora import LoraLayer
        from peft.tuners.lora.layer import Linear
    except ImportError as error:
        raise ImportError(
            f"--lora is {config.lora} and needs PEFT: pip install 'gft-kernels[lora]' ({error})."
        ) from error
    rank, named = config.lora, [name.strip() for name in config.lora_targets.split(",")]
    assert rank is not None
    wanted = LoraConfig(
        r=rank,
        lora_alpha=2 * rank if config.lora_alpha is None else config.lora_alpha,
        target_modules="all-linear" if named == ["all-linear"] else named,
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(seed)  # of A
    try:
        # PEFT warns of tied heads, which `save_merged` unties, and of layers that keep their weight
        # transposed, which it sees by itself.
        with warnings.catch_warnings(action="ignore"):
            adapter: Any = get_peft_model(model, wanted)
    except ValueError as error:
        raise ValueError(f"--lora-targets is {config.lora_targets}, which does not suit the model: {error}") from error
    adapted = [name for name, _ in _adapted(model)]
    # PEFT passes over a name that no layer has, as long as another one is found.
    missing = [n for n in named if n != "all-linear" and not any(f".{a}".endswith(f".{n}") for a in adapted)]
    if missing or ("all-linear" in named and len(named) > 1):
        what = f"no layer is named {missing[0]!r}" if missing else "all-linear stands alone"
        raise ValueError(f"--lora-targets is {config.lora_targets}: {what}.")
    others = {type(m).__name__ for m in model.modules() if isinstance(m, LoraLayer) and not isinstance(m, Linear)}
    if others:
        raise ValueError(f"--lora-targets is {config.lora_targets}: {', '.join(others)} is no linear layer.")
    return adapter.eval()


def save_adapter(adapter: Any, folder: Path) -> None:
    """PEFT's folder of the factors: `PeftModel.from_pretrained(base, folder)` reads it."""
    adapter.save_pretrained(folder, save_embedding_layers=False)


def load_adapter(adapter: Any, folder: Path) -> None:
    """Take the factors of a folder that `save_adapter` wrote.

    Raises:
        ValueError: they are of other layers or of another rank.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    saved, own = load_file(folder / WEIGHTS), get_peft_model_state_dict(adapter, save_embedding_layers=False)
    if {k: v.shape for k, v in saved.items()} != {k: v.shape for k, v in own.items()}:
        raise ValueError(f"{folder} holds factors of other layers or of another rank than --lora and --lora-targets.")
    set_peft_model_state_dict(adapter, saved)


@torch.no_grad()
def save_merged(model: PreTrainedModel, folder: Path) -> None:
    """A plain transformers folder of W + (alpha / r) B A; the model itself is left as it is.

    A head that shares its weight with the embedding, and has factors of its own, shares it no more.

    Cost: a copy of the weights that have factors.
    """
    state = {_plain(name): value for name, value in model.state_dict().items() if ".lora_" not in name}
    for name, layer in _adapted(model):
        state[f"{name}.weight"] = layer.base_layer.weight + layer.get_delta_weight("default")
    model.save_pretrained(folder, state_dict=state)
    if hasattr(model.get_output_embeddings(), "lora_A") and model.config.get_text_config().tie_word_embeddings:
        config = copy.deepcopy(model.config)
        config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False
        config.save_pretrained(folder)


def _adapted(model: PreTrainedModel) -> list[tuple[str, Any]]:
    return [(name, module) for name, module in model.named_modules() if hasattr(module, "lora_A")]


def _plain(name: str) -> str:
    """The name that a weight has without PEFT."""
    return name.replace(".base_layer.", ".")
