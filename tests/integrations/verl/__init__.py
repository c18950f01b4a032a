"""Tests of the verl adapter, in verl's own environment: `make test-verl`."""

from importlib.util import find_spec

import pytest

# verl may be there without what it imports: the benchmarks install it so, for one of its files.
missing = [name for name in ("verl", "ray", "tensordict", "hydra", "datasets") if find_spec(name) is None]
if missing:
    pytest.skip(f"needs verl with what it imports (no {', '.join(missing)}): make test-verl", allow_module_level=True)
