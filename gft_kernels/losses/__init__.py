"""Numbers on [N] and [B]: objectives, group advantages, reductions. Nothing sees the vocabulary."""
