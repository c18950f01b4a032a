"""Numbers on [N] and [B]: objectives, group advantages, reductions.

Nothing here sees the vocabulary.
"""
