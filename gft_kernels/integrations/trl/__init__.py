"""TRL: its trainers with a fused policy loss, and given responses among those of a group.

    GFTTrainer          GRPOTrainer, its loss by `linear_policy_loss` in the model's forward
    given_responses     expert or teacher responses that take places in each group
    objective_of        the objective that a GRPOConfig says
    PolicySFTTrainer    SFTTrainer, likewise

What a config asks for and this does not compute is refused by its name.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    _found = version("trl")
except PackageNotFoundError:
    _found = "none"
if _found == "none" or tuple(int(x) for x in _found.split(".")[:2]) < (1, 16):
    raise ImportError(f"gft_kernels.integrations.trl works on TRL 1.16 and later, found {_found}: pip install -U trl")

from .given import GivenResponses, given_responses
from .grpo import GFTTrainer
from .objective import objective_of
from .sft import PolicySFTTrainer

__all__ = ["GFTTrainer", "GivenResponses", "PolicySFTTrainer", "given_responses", "objective_of"]
