"""What a YAML file says of the loss, and what else in it does not go with that."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, model_validator

from ...losses.objectives import Objective
from ..named import named_objective

PLUGIN = "gft_kernels.integrations.axolotl.GFTPlugin"
SUPERVISED = ("sft", "dft", "gft")  # the others need the log-probs of a policy that sampled

_LOSS = "it computes the loss in its own way, and the objective is in its place"
_TRAINER = "it trains with a trainer of its own"
_CUT = "sequences or heads are cut over processes"
# An option that must be absent or off, and the reason.
REFUSED = {
    "cut_cross_entropy": _LOSS,
    "chunked_cross_entropy": _LOSS,
    "liger_cross_entropy": _LOSS,
    "liger_fused_linear_cross_entropy": _LOSS,
    "flash_attn_cross_entropy": _LOSS,
    "unsloth_cross_entropy_loss": _LOSS,
    "use_eaft": _LOSS,
    "orpo_alpha": _LOSS,
    "label_smoothing_factor": "it needs whole logits",
    "rl": _TRAINER,
    "reward_model": _TRAINER,
    "process_reward_model": _TRAINER,
    "trainer_cls": _TRAINER,
    "kd_trainer": _TRAINER,
    "diffusion": _TRAINER,
    "hatchery": _TRAINER,
    "processor_type": "images and sound have not been tried",
}
# Numbers of processes, of which more than one is refused.
CUT = ("context_parallel_size", "sequence_parallel_degree", "tensor_parallel_size")
# With sample_packing one of them must be there: else axolotl lets samples see each other, and
# warns.
ATTENTION = (
    "attn_implementation",
    "flash_attention",
    "flex_attention",
    "sdp_attention",
    "eager_attention",
    "xformers_attention",
    "sage_attention",
    "gemma4_hybrid_attn_impl",
)


class GFTArgs(BaseModel):
    """The section `gft:` of the YAML file."""

    gft: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def check_gft(cls, data: Any) -> Any:
        if PLUGIN in (data.get("plugins") or []):  # axolotl keeps the plug-ins of earlier files of a process
            objective_of(data.get("gft"))
            refuse(data)
        return data


def objective_of(section: Any) -> Objective:
    """The objective that the section `gft:` names.

    Raises:
        ValueError, TypeError: there is none, or not with those numbers.
    """
    if not isinstance(section, dict) or "objective" not in section:
        raise ValueError(
            f"gft: {section!r}: the plug-in GFTPlugin needs a section such as  gft: {{objective: gft, tau: 0.7}}  "
            f"with an objective of {', '.join(SUPERVISED)}."
        )
    numbers = {name: value for name, value in section.items() if name != "objective"}
    try:
        return named_objective(section["objective"], numbers, SUPERVISED)
    except (ValueError, TypeError) as error:
        raise ValueError(f"gft: {error}") from error


def refuse(options: Any) -> None:
    """All options that would have no effect, or a wrong one, at once.

    Raises:
        ValueError: there is one.
    """
    found = [f"{name}: {options.get(name)!r} ({why})" for name, why in REFUSED.items() if options.get(name)]
    found += [f"{name}: {options.get(name)} ({_CUT})" for name in CUT if (options.get(name) or 1) > 1]
    if (options.get("fsdp_config") or {}).get("cpu_ram_efficient_loading"):
        found.append(
            "fsdp_config.cpu_ram_efficient_loading: true (all processes but one have no weights when the model is "
            "looked at)"
        )
    if options.get("sample_packing") and not any(options.get(name) for name in ATTENTION):
        found.append(
            "sample_packing: true without attn_implementation (samples would see each other: set sdpa, or "
            "flash_attention_2 on a GPU)"
        )
    if options.get("model_config_type") == "mamba":
        found.append(f"model_config_type: mamba ({_TRAINER})")
    if found:
        raise ValueError(f"options that do not go with the fused loss of gft: {'; '.join(found)}.")
