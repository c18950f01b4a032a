"""axolotl: a policy loss in supervised training, by a plug-in that the YAML file names.

GFTPlugin           what `plugins:` lists
settings            the section `gft:`, and the options that do not go with it
"""

from importlib.metadata import PackageNotFoundError, version

try:
    _found = version("axolotl")
except PackageNotFoundError:
    _found = "none"
if _found == "none" or tuple(int(x) for x in _found.split(".")[:2]) < (0, 19):
    raise ImportError(
        f"gft_kernels.integrations.axolotl works on axolotl 0.19 and later, found {_found}: pip install -U axolotl"
    )

from .plugin import GFTPlugin

__all__ = ["GFTPlugin"]
