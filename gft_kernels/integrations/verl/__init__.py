"""verl: policy loss, advantages and head, registered when verl is imported.

    install            registers the loss "gft" and the advantage estimator "gft", and sets the head
    policy_loss        an objective as a policy loss of verl, to register under a name of your own
    advantages         group advantages as an estimator of verl
    FusedLinear        the head of verl's fused forward, with the model's bias, scale and soft cap
    GFTLossConfig      verl's policy_loss section with tau in it

`pip install` puts an entry point in place, through which `import verl` calls `install()`. What a
config asks for and this does not compute is refused by its name.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    _found = version("verl")
except PackageNotFoundError:
    _found = "none"
if _found == "none" or tuple(int(x) for x in _found.split(".")[:2]) < (0, 9):
    raise ImportError(f"gft_kernels.integrations.verl works on verl 0.9 and later, found {_found}: pip install -U verl")

from .config import GFTLossConfig
from .estimator import advantages
from .head import FusedLinear
from .loss import policy_loss
from .registration import install

__all__ = ["FusedLinear", "GFTLossConfig", "advantages", "install", "policy_loss"]
