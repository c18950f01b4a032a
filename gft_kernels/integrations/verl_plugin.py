"""What the entry point of verl loads: importing it installs `gft_kernels.integrations.verl`.

verl tells of a plug-in that fails at the level DEBUG alone, and training would end at "Unsupported
loss mode: gft". So this one says why.
"""

import sys

try:
    from .verl import install as _install
    from .verl.registration import installed as _installed

    if not _installed():  # by a module of the user's, with other numbers
        _install()
except Exception as error:
    print(
        f"gft-kernels: verl has no loss and no advantages 'gft' ({type(error).__name__}: {error}). "
        "VERL_USE_EXTERNAL_PLUGINS=none leaves this plug-in out.",
        file=sys.stderr,
    )
