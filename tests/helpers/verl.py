"""Whether verl is here with what it imports."""

from __future__ import annotations

from importlib.util import find_spec


def missing() -> list[str]:
    """What the tests of the adapter lack. The benchmarks install verl alone, for a file of it."""
    return [name for name in ("verl", "ray", "tensordict", "hydra", "datasets") if find_spec(name) is None]
