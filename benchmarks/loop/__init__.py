"""The whole training step, with other heads in place of its own."""
