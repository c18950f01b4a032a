"""A call is short to read: how many files a fused loss passes through, and how often it changes."""

from __future__ import annotations

from .helpers.flow import files_of, fused_loss

FILES, CHANGES = 9, 16


def test_a_chunked_fused_loss_is_short_to_read():
    entered = files_of(fused_loss("chunked"))
    assert len(set(entered)) <= FILES, entered
    assert len(entered) - 1 <= CHANGES, entered
    assert entered[0] == "ops/linear_policy_loss.py"
    assert "engines/chunked.py" in entered  # the count is of the whole way down
