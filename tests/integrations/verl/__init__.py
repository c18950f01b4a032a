"""Tests of the verl adapter, in verl's own environment: `make test-verl`."""

import pytest

from ...helpers.verl import missing

if missing():
    pytest.skip(
        f"verl is not here with what it imports (no {', '.join(missing())}): make test-verl", allow_module_level=True
    )
